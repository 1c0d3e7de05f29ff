"""Neural fits: how well a network predicts what neurons of the visual cortex answer (the paper's Fig. 6)."""

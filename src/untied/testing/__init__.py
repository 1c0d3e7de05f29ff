"""What holds of every rule and of every layer type, as tests that one's own inherits; this library's do too.

    from untied.testing import RuleTests

    class TestHalved(RuleTests):
        rule = "halved"

pytest collects it. A method that cannot say anything of a rule skips itself, with its reason. What the class says of
its rule is an attribute, and what it is tried on are methods: give them anew in the subclass.
"""

from .layers import LayerTests
from .rules import RuleTests

__all__ = ["LayerTests", "RuleTests"]

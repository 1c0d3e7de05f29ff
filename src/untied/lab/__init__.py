"""The application around the library: data, models, training, run folders, figures and reports.

It imports ``untied``, never the other way round, and needs the ``lab`` extra: ``pip install 'torch-untied[lab]'``.
"""

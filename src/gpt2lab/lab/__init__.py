"""The laboratory: whole experiments from the parts below, and what is told of them.

`train` joins the training loop with sampling; quickstart, check and the report are verbs of the command line.
"""

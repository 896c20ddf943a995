"""The verbs of the command line, one file each; ``ringrift_pipeline.cli`` puts them together."""

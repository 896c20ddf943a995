"""``python -m ringrift_pipeline`` is ``ringrift``."""

from ringrift_pipeline.cli import main

main()

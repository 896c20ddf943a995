"""What killed steps have left in a worker's data root goes when a worker starts on it.

That is a process of its own: nothing that talks to a bucket may be there when the processes of steps
are forked from the worker's.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

from ringrift_pipeline.store import BucketError, Store, StoreError
from ringrift_pipeline.store.bucket_settings import PATIENCE_VARIABLE


def sweep_apart(data: Path) -> None:
    """Remove the drafts and temporary files of dead writers in ``data``, and upload what has landed
    there and is not in the bucket yet.

    A folder that is missing or empty stays so. A bucket that refuses is not waited for: what is not
    uploaded now is when it is next asked for.
    """
    if data.is_dir() and any(data.iterdir()):
        line = [sys.executable, "-P", "-m", __name__, str(data)]
        subprocess.run(line, check=False, env={**os.environ, PATIENCE_VARIABLE: "0"})


if __name__ == "__main__":
    try:
        Store(sys.argv[1]).sweep()
    except (BucketError, StoreError) as error:
        logging.warning("what killed steps have left is not all cleared away: %s", error)

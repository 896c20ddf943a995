"""Where files live: artefact folders, generation plans, champions, locks and atomic writes.

This room knows nothing of games, numpy or torch. Layout under the data root::

    <root>/<config>/generations/<0007>/plan.json
    <root>/<config>/generations/<0007>/<kind>/<unique folder>/{files…, manifest.json}
    <root>/<config>/generations/<0007>/<kind>/current.json      which folder is current
    <root>/<config>/champion.json, champions.jsonl              the champion and its history
    <root>/<config>/switches.json                               what may start by itself
    <root>/<config>/quarantine/                                 what failed verification, with reasons
    <root>/<config>/.locks/                                     named locks

With ``RINGRIFT_BUCKET`` set all of it but the locks is in a bucket, and what is here is a cache of that
(docs/bucket.md).

POSIX only (Linux, macOS): liveness of writers rests on ``flock``, which the kernel drops with the
process.
"""

from ringrift_pipeline.store.atomic import (
    append_jsonl,
    read_jsonl,
    write_bytes_atomic,
    write_json_atomic,
)
from ringrift_pipeline.store.bounded import TooLargeError, read_bounded
from ringrift_pipeline.store.champion import Champion
from ringrift_pipeline.store.draft import Draft, Folder
from ringrift_pipeline.store.errors import (
    BucketError,
    BucketSettingError,
    CorruptArtefactError,
    InvalidNameError,
    LockedError,
    MissingArtefactError,
    OutsideError,
    SerializationError,
    StoreError,
    UnreadableArtefactError,
    UnreliableHostError,
    VanishedFileError,
    naming,
)
from ringrift_pipeline.store.falling_back import copy_of, serving_champion
from ringrift_pipeline.store.layout import generation_key
from ringrift_pipeline.store.manifest import Artefact, check_file, check_folder
from ringrift_pipeline.store.quarantine import Quarantined, quarantined, reason_of
from ringrift_pipeline.store.store import Store
from ringrift_pipeline.store.switches import SWITCHES, Switches

__all__ = [
    "SWITCHES",
    "Artefact",
    "BucketError",
    "BucketSettingError",
    "Champion",
    "CorruptArtefactError",
    "Draft",
    "Folder",
    "InvalidNameError",
    "LockedError",
    "MissingArtefactError",
    "OutsideError",
    "Quarantined",
    "SerializationError",
    "Store",
    "StoreError",
    "Switches",
    "TooLargeError",
    "UnreadableArtefactError",
    "UnreliableHostError",
    "VanishedFileError",
    "append_jsonl",
    "check_file",
    "check_folder",
    "copy_of",
    "generation_key",
    "naming",
    "quarantined",
    "read_bounded",
    "read_jsonl",
    "reason_of",
    "serving_champion",
    "write_bytes_atomic",
    "write_json_atomic",
]

"""What steps, checks and the sensor share: the store under the data root, the settings of a run."""

from __future__ import annotations

import inspect

from dagster import (
    ConfigurableIOManager,
    ConfigurableResource,
    IOManagerDefinition,
    ResourceDefinition,
)
from pydantic import Field

from ringrift_pipeline.orchestration.places import DATA_VARIABLE, data_folder
from ringrift_pipeline.store import Store


class StoreResource(ConfigurableResource):
    """The store: artefacts, plans and champions under one data root."""

    root: str = Field(
        default="",
        description=f"The data root; empty means ${DATA_VARIABLE}, else the parent of DAGSTER_HOME "
        "where that is called dagster, else ./data.",
    )

    def open(self) -> Store:
        """The store itself."""
        return Store(data_folder(self.root))


def fixed(resource: StoreResource | ConfigurableIOManager) -> ResourceDefinition:
    """The resource as it is, with nothing that a launch could set: whoever may launch a run must not
    send it, with this instance's locks, to another folder.
    """
    description = inspect.getdoc(resource)
    if isinstance(resource, ConfigurableIOManager):
        return IOManagerDefinition(lambda _: resource, {}, description)
    return ResourceDefinition(lambda _: resource, {}, description)

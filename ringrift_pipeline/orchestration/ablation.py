"""The ablation: does each enhancement help? A job whose report is seen beside the checkpoint."""

from dagster import AssetObservation, Config, MetadataValue, OpExecutionContext, job, op
from pydantic import Field

from ringrift_pipeline.evaluation.ablation_budget import SEEDS, STEPS
from ringrift_pipeline.orchestration.checks import require_sound
from ringrift_pipeline.orchestration.integrity import ablation_sound
from ringrift_pipeline.orchestration.metadata import for_people
from ringrift_pipeline.orchestration.names import asset_key, generation_key
from ringrift_pipeline.orchestration.pools import pool_of, tags_of
from ringrift_pipeline.orchestration.settings import ConfigName, refusing
from ringrift_pipeline.orchestration.step import LOST, once, running_step

JOB = "ablation"


class AblationConfig(Config):
    """What an ablation compares."""

    config: ConfigName = Field(description="Board and players: square8_2p, …, hexagonal_4p.")
    generation: int | None = Field(
        default=None,
        ge=0,
        le=999_999_999,
        description="Whose data; without it, the newest that has been played.",
    )
    seeds: int = Field(
        default=SEEDS, ge=2, le=1000, description="Paired seeds: runs of every variant."
    )
    steps: int = Field(
        default=STEPS, ge=1, le=1_000_000, description="Optimizer steps of every run."
    )
    fresh: bool = Field(
        default=False, description="Start from fresh weights, not from the generation's parent."
    )


class NothingPlayedError(LookupError):
    """An ablation was asked for a config without any games."""


@op(
    name="ablate",
    required_resource_keys={"store"},
    pool=pool_of("ablation"),
    retry_policy=LOST,
    tags=tags_of("ablation"),
    description="Trains with and without each enhancement and observes the checkpoint.",
)
def ablate(context: OpExecutionContext, config: AblationConfig) -> None:
    """One config's ablation."""
    from ringrift_pipeline.evaluation import ablate as run_ablation

    name, generation = str(config.config), config.generation
    with once():
        if generation is None:
            generation = context.resources.store.open().newest(name, "selfplay_shards")
        if generation is None:
            raise NothingPlayedError(f"{name} has no games yet: run its generation job")
    with once(), running_step(context, name, generation) as step:
        plan = step.plan()
        artefact = run_ablation(
            step.store,
            plan,
            seeds=config.seeds,
            steps=config.steps,
            fresh=config.fresh,
            workers=plan.settings.selfplay.workers,
            **step.hooks(),
        )
        require_sound(ablation_sound, step)
        verdicts = artefact.metadata["verdicts"]
        said = ", ".join(f"{what}: {verdict}" for what, verdict in verdicts.items())
        seconds, rows = (
            artefact.metadata[f"ablation/{name}"] for name in ("seconds", "rows_per_s")
        )
        context.log_event(
            AssetObservation(
                asset_key(name, "checkpoint"),
                partition=generation_key(generation),
                description=f"Does each enhancement help? {said}",
                metadata={
                    **for_people(artefact),
                    # as text: the checkpoint's own numbers are as many as are plotted
                    "training of all runs": f"{seconds:.0f} s, {rows:.0f} rows/s",
                    "path": MetadataValue.path(artefact.path),
                },
            )
        )


@job(
    name=JOB,
    description="Trains one generation's data with and without each enhancement, over paired "
    "seeds, and compares on held-out games. The result is an observation of the checkpoint. A run "
    "that was stopped goes on where it was.",
)
def ablation() -> None:
    """One op."""
    refusing(ablate, AblationConfig)()

"""How much each sample of a batch counts: by its quality, and by how hard it is."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from ringrift_pipeline.enhancements.data_quality_scoring import DataQualityScorer
from ringrift_pipeline.enhancements.facade_config import FacadeConfig
from ringrift_pipeline.enhancements.hard_example_mining import HardExampleMiner

logger = logging.getLogger(__name__)


class SampleWeights:
    """Weights by data-set row.

    Attributes:
        quality: (N,) float64 of mean 1, or None where no scores were given.
    """

    def __init__(self, config: FacadeConfig, miner: HardExampleMiner | None) -> None:
        self._config = config
        self._miner = miner
        self._warned: set[str] = set()
        self.quality: np.ndarray | None = None

    def set_quality(self, scores: Any, temperature: float | None) -> None:
        """As ``TrainingEnhancementsFacade.set_quality_scores``."""
        if scores is None:
            self.quality = None
            return
        if not self._config.enable_quality_scoring:
            raise ValueError("quality scores were given but enable_quality_scoring is off")
        weights = DataQualityScorer().compute_sample_weights(
            scores, self._config.quality_temperature if temperature is None else temperature
        )
        self.quality = weights * weights.size

    def of(self, indices: np.ndarray | None, count: bool) -> np.ndarray | None:
        """Weights (B,) float64 of data-set rows (B,); None when all are 1.

        Args:
            indices: None: the batch does not say which rows it is.
            count: whether the miner counts the rows as drawn.
        """
        config = self._config
        if indices is None:
            for name, part in (("hard mining", self._miner), ("quality scores", self.quality)):
                if part is not None and name not in self._warned:
                    self._warned.add(name)
                    logger.warning("batches carry no indices: %s cannot be used", name)
            return None
        weights = None
        if self.quality is not None:
            if indices.size and int(indices.max()) >= self.quality.size:
                raise ValueError(
                    f"indices: {int(indices.max())} has no quality score: "
                    f"{self.quality.size} were given"
                )
            weights = self.quality[indices]
        if self._miner is not None and config.hard_upweight != config.hard_base_weight:
            mined = self._miner.get_sample_weights(
                indices, config.hard_base_weight, config.hard_upweight, count=count
            )
            weights = mined if weights is None else weights * mined
        return weights


__all__ = ["SampleWeights"]

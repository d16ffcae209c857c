"""A recipe: its sections and their settings, how it is read and overridden, and what its messages say."""

from pdfx.config.config import Config, EvaluateSection, dump_config, load_config, parse_config, shown_settings
from pdfx.config.data_sections import DataSection, DataSetSection
from pdfx.config.model_sections import InputsSection, LoraSection, ModelSection, PrefixSection
from pdfx.config.objective_sections import (
    TEMPERATURE_BOUNDS,
    MutualInformationSection,
    ObjectiveSection,
    RecentSection,
)
from pdfx.config.recipe_file import ConfigError
from pdfx.config.train_sections import GuardsSection, TrainSection

__all__ = [
    "TEMPERATURE_BOUNDS",
    "Config",
    "ConfigError",
    "DataSection",
    "DataSetSection",
    "EvaluateSection",
    "GuardsSection",
    "InputsSection",
    "LoraSection",
    "ModelSection",
    "MutualInformationSection",
    "ObjectiveSection",
    "PrefixSection",
    "RecentSection",
    "TrainSection",
    "dump_config",
    "load_config",
    "parse_config",
    "shown_settings",
]

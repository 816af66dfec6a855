"""Run settings: what can be chosen, its default, and one sentence on what it does.

Settings are passed around as frozen dataclasses. Keys in a TOML file are the names of fields,
spelled the same. :func:`load_settings` reads any such dataclass from a file and from the command
line, and :func:`dump_settings` writes it back.
"""

from coordrl.config.atari import AtariSettings, Protocol, settings_for
from coordrl.config.files import (
    Override,
    SettingsError,
    accepted_keywords,
    dump_settings,
    load_settings,
    parse_override,
    parse_overrides,
    read_toml,
    refuse_overruled,
)
from coordrl.config.training import (
    AccelerationSettings,
    OptimizerSettings,
    RunSettings,
    TrainingSettings,
)
from coordrl.config.values import Schedule, parse_value, require_at_least, take_types

__all__ = [
    "AccelerationSettings",
    "AtariSettings",
    "OptimizerSettings",
    "Override",
    "Protocol",
    "RunSettings",
    "Schedule",
    "SettingsError",
    "TrainingSettings",
    "accepted_keywords",
    "dump_settings",
    "load_settings",
    "parse_override",
    "parse_overrides",
    "parse_value",
    "read_toml",
    "refuse_overruled",
    "require_at_least",
    "settings_for",
    "take_types",
]

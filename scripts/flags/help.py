"""What --help prints: a script's flags by topic, the most important first."""

import shutil
import sys
import textwrap
from collections.abc import Sequence

from absl import flags

# Module that defines a flag -> heading; the script's own flags come first.
_TOPICS = {
    "flags.training": "Algorithm, optimizers and aggregation",
    "flags.workload": "Data and model",
    "flags.averaging": "Dynamic averaging",
    "flags.plot": "Plots",
    "flags.time_budget": "Work in parts",
    "flags.devices": "Devices, processes and memory",
}
_OWN = "Rounds and results"
_WIDEST = 100  # columns


def text(first: Sequence[str] = ()) -> str:
    """Returns the running script's description and its flags.

    Args:
      first: names of the flags that matter most, in the order to read them.
    """
    own = {flag.name: flag for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])}
    topics = {"First of all": list(first)} if first else {}
    topics |= {topic: [] for topic in (_OWN, *_TOPICS.values())}
    for name in own:
        if name not in first:
            module = flags.FLAGS.find_module_defining_flag(name)
            topics[_TOPICS.get(module, _OWN)].append(name)
    parts = [sys.modules["__main__"].__doc__.strip()]
    for topic, names in topics.items():
        if names:
            parts.append("\n".join([f"{topic}:", *(_line(own[name]) for name in names)]))
    return "\n\n".join([*parts, "absl's own flags, such as those of logging: --helpfull"])


def _line(flag: flags.Flag) -> str:
    if flag.boolean:
        shown = f"--[no]{flag.name}"
    elif flag.default is None:
        shown = f"--{flag.name}=..."
    else:
        shown = f"--{flag.name}={flag.default_as_str.strip(chr(39))}"
    width = min(shutil.get_terminal_size((_WIDEST, 24)).columns, _WIDEST)
    told = textwrap.fill(
        flag.help, width, initial_indent=" " * 6, subsequent_indent=" " * 6, break_on_hyphens=False
    )
    return f"  {shown}\n{told}"

"""`skipsearch plan`: what a search will take, measured before it starts."""

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..policies.wording import escape_invisible
from .options import parse_overrides

if TYPE_CHECKING:
    from .plan.plan import Plan
    from .space.space import LoadedSpace


def plan(options: argparse.Namespace) -> int:
    """`skipsearch plan`."""
    started = time.monotonic()
    from .space.load import load_spaces
    from .space.trust import refuse_untrusted_models

    overrides = parse_overrides(options.overrides)
    spaces = load_spaces(options.space, overrides)
    refuse_untrusted_models([loaded.space for loaded in spaces], options, overrides)
    from .plan.text import plan_lines

    def note(text: str) -> None:
        if not options.quiet:
            print(text, file=sys.stderr)

    data, seconds = [], 0.0
    for loaded in spaces:
        made, device = measured_plan(loaded, options.hours, note, started)
        data.append({"space": loaded.name, "model": loaded.model_id, **made.data()})
        seconds += made.seconds
        name = f"{loaded.name}/{loaded.model_name}" if loaded.model_name else loaded.name
        for line in plan_lines(made, name, device) if not options.json else ():
            print(escape_invisible(line))
        started = time.monotonic()
    if options.json:
        several = {"space": spaces[0].name, "models": data, "seconds": seconds}
        print(json.dumps(several if len(spaces) > 1 else data[0]))
    elif len(spaces) > 1:
        from .driver.forecast_text import span

        print(f"the {len(spaces)} searches, one after the other: {span(seconds)}")
    return 0


def measured_plan(
    loaded: "LoadedSpace", hours: float | None, note: Callable[[str], None], started: float
) -> "tuple[Plan, dict[str, Any]]":
    """The plan of one search, and the description of a worker.

    Args:
        loaded: The space.
        hours: For how many to say how many trials fit; None for none.
        note: Shows what is being measured.
        started: When the command, or the plan of this model, began, by the monotonic clock.
    """
    from .plan.plan import plan_search
    from .plan.run import measure_space
    from .signals import interruptible

    if loaded.model_name:
        note(f"model {loaded.model_name}")
    with interruptible() as set_handlers:
        found = measure_space(loaded.space, set_handlers, note, started)
    return plan_search(*found.arguments, hours=hours), found.device

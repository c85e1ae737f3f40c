"""`skipsearch plan`: what a search will take, measured before it starts."""

import argparse
import json
import sys
import time

from ..policies.wording import escape_invisible
from .options import parse_overrides


def plan(options: argparse.Namespace) -> int:
    """`skipsearch plan`."""
    started = time.monotonic()
    from .signals import interruptible
    from .space.load import load_space
    from .space.trust import refuse_untrusted

    overrides = parse_overrides(options.overrides)
    loaded = load_space(options.space, overrides)
    refuse_untrusted(loaded.space, options, overrides)
    from .plan.plan import plan_search
    from .plan.run import measure_space
    from .plan.text import plan_lines

    def note(text: str) -> None:
        if not options.quiet:
            print(text, file=sys.stderr)

    with interruptible() as set_handlers:
        found = measure_space(loaded.space, set_handlers, note, started)
    made = plan_search(*found.arguments, hours=options.hours)
    if options.json:
        print(json.dumps({"space": loaded.name, "model": loaded.model_id, **made.data()}))
        return 0
    for line in plan_lines(made, loaded.name, found.device):
        print(escape_invisible(line))
    return 0

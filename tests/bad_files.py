"""Files with mistakes: text, and what a user should be told of it."""

from __future__ import annotations

from typing import Any

import pytest

POLICY = "schema: skipsearch/policy/v1\n"
SPACE = """\
schema: skipsearch/space/v1
model: {id: m}
layers: [{range: all, choices: [keep, skip_ffn]}]
evaluate: {flops: {}, accuracy: {tasks: [a]}}
objectives: {accuracy: maximize, prefill_flops: minimize}
"""
EITHER = "expected 'skipsearch/space/v1' or 'skipsearch/policy/v1'"
BEGIN = "begin the file with `schema: skipsearch/space/v1` or `schema: skipsearch/policy/v1`"
GENERATORS = "expected exactly one of shifted_cosine, linear, fastv, pyramid_drop, vtw, divprune, skip_vision, interval"
SCORE_NAMES = "'attention', 'change', 'diverse', 'key_norm', 'norm', 'random', 'relevance', 'router' or 'uniform'"
CHANGING = "'skip_ffn', 'skip_attention', 'skip_layer' or 'parallel'"
DEPTH = "model: {num_layers: 8}\n"
NAMES = "keep, skip_ffn, skip_attention, skip_layer, parallel, freeze_image"
RANGES = "expected one layer such as 5, or 2-31, 2-last or all"
BOUNDS = "expected a bound such as '>= 0.9 * dense', '>= 0.9 * kept', '>= dense - 0.02' or '<= 12.5'"
MAPPING = "expected a mapping of keys to values"
ALIASES = "\n".join(f"b{level}: &b{level} [{', '.join([f'*b{level - 1}'] * 10)}]" for level in range(1, 8))

# What is no YAML that we read, whatever it is to be: its text, its problems by line and column, and the hint.
YAML = {
    "empty": ("", [f"1:1  found nothing, {MAPPING}"]),
    "only a comment": ("# later\n", [f"1:1  found nothing, {MAPPING}"]),
    "list": ("- a\n- b\n", [f"1:1  found a list, {MAPPING}"]),
    "word": ("hello\n", [f"1:1  found a single value, {MAPPING}"]),
    "two documents": (f"{POLICY}---\n{POLICY}", ["2:1  found a second document, expected one"]),
    "tab": (f"{POLICY}model:\n\tid: m\n", ["3:1  found a tab, expected spaces"]),
    "open list": ("schema: [a\n", ["2:1  expected ',' or ']', but got the end of the file"]),
    "open quotes": ('schema: "a\n', ["2:1  found the end of the file inside quotes"]),
    "colon in a value": ("schema: a: b\n", ["1:10  found a ':' inside a value, or a line that is indented too far"]),
    "at sign": ("schema: @a\n", ["1:9  found '@' at the start of a value; put the value in quotes"]),
    "unknown alias": ("schema: *a\n", ["1:9  found undefined alias 'a'"]),
    "anchor twice": ("a: &a 1\nb: &a 2\n", ["2:4  duplicate anchor"]),
    "control character": ("schema: \0\n", ["1:9  found the character #x0000, which YAML does not allow"]),
    "impossible escape": ('schema: "\\UFFFFFFFF"\n', ["1:1  not YAML: Python int too large to convert to C int"]),
    "alias bomb": (f"b0: &b0 [x, x, x, x]\n{ALIASES}\n", ["1:16  aliases expand to over 100000 values"]),
    "long text in aliases": (
        f"a: &a {'x' * 100_000}\nb: [{', '.join(['*a'] * 200)}]\n",
        ["1:4  aliases expand to over 100000 values"],
    ),
    "alias of itself": ("a: &a [*a]\n", ["1:4  nested too deeply, expected at most 40 levels"]),
    "deep": (f"a: {'[' * 60}{']' * 60}\n", ["1:44  nested too deeply, expected at most 40 levels"]),
    "very deep": (f"a: {'[' * 3000}\n", ["1:44  nested too deeply, expected at most 40 levels"]),
    "no schema": ("layers: {}\n", [f"1:1  schema: the key is missing, {EITHER}"], BEGIN),
    "later schema": ("schema: skipsearch/space/v2\n", [f"1:1  schema: found 'skipsearch/space/v2', {EITHER}"]),
    "schema of a kind": ("schema: {a: 1}\n", [f'1:1  schema: found {{"a": 1}}, {EITHER}']),
    "schema with a tag": (
        "schema: !!python/object/apply:os.system [ls]\n",
        ["1:1  schema: found the tag !!python/object/apply:os.system, expected plain values"],
    ),
}

# What follows the schema of a policy, and its problems.
POLICIES = {
    "python object": ("model: !!python/object:os.system {}", ["2:1  model: found the tag !!python/object:os.system, "
                                                               "expected plain values"]),
    "binary": ("model: {id: !!binary aGk=}", ["2:9  model.id: found the tag !!binary, expected plain values"]),
    "not of its tag": ("model: {id: !!bool a}", ["2:9  model.id: found 'a', which cannot be read as !!bool"]),
    "endless number": (f"model: {{num_layers: {'9' * 5000}}}", [f"2:9  model.num_layers: found '{'9' * 56}..., "
                                                                "a number of over 20 digits, expected a smaller one"]),
    "octal": ("layers: {010: {ffn: skip}}", ["2:10  found '010' as a key, which YAML reads as a number in base 8; "
                                             "write 10 where that is meant"]),
    "base 60": ("model: {num_layers: 1:30}", ["2:9  model.num_layers: found '1:30', which YAML reads as a number in "
                                              "base 60; write '1-30' for a range, or a decimal number"]),
    "merge key": ("layers: {1: {<<: {ffn: skip}}}", ["2:14  merge keys (<<) are not read; write the keys out"]),
    "layer twice": ("layers:\n  3: {ffn: skip}\n  3: {ffn: run}",
                    ["4:3  layers[3]: duplicate key"]),
    "layer twice, once in hexadecimal": ("layers: {3: {}, 0x3: {}}",
                                         ["2:17  found '0x3' as a key, which YAML reads as a number in base 16; "
                                          "write a decimal number"]),
    "layer twice, once in quotes": ("layers: {3: {}, '3': {}}", ["2:17  layers.3: duplicate key"]),
    "half a layer": ("layers: {1.5: {}}", ["2:10  found '1.5' as a key, expected a name or a whole number"]),
    "list as a key": ("layers: {[1]: {}}", ["2:10  found a list, mapping or tag as a key, "
                                            "expected a name or a whole number"]),
    "layer below the first": ("layers: {-1: {}}", ["2:10  layers[-1]: found -1, expected 0 or more"]),
    "layer beyond any model": ("layers: {10000: {}}", ["2:10  layers[10000]: found 10000, expected 9999 or less"]),
    "layers beyond the model": ("model: {num_layers: 4}\nlayers: {4: {}, 3: {}, 7: {}}",
                                ["3:10  layers[4]: found layer 4, expected 0 to 3",
                                 "3:24  layers[7]: found layer 7, expected 0 to 3"]),
    "layer by name": ("layers: {one: {}}", ["2:10  layers.one: found 'one', expected a whole number"]),
    "layers as a list": ("layers: [skip]", [f'2:1  layers: found ["skip"], {MAPPING}']),
    "layer as a choice": ("layers: {1: skip_ffn}", [f"2:10  layers[1]: found 'skip_ffn', {MAPPING}"]),
    "layer without a choice": ("layers: {1: }", [f"2:10  layers[1]: found null, {MAPPING}"]),
    "near key": ("layers: {1: {atention: skip}}",
                 ["2:14  layers[1].atention: unknown key; the nearest known one is 'attention'"]),
    "far key": ("layers: {1: {zzz: skip}}",
                ["2:14  layers[1].zzz: unknown key; known: attention, evict, ffn, ffn_ratio, head_ratio, norm, "
                 "phase, rest, token_ratio, tokens, window, wiring"]),
    "near key at the top": ("layer: {}", ["2:1  layer: unknown key; the nearest known one is 'layers'"]),
    "unknown value": ("layers: {1: {ffn: drop}}", ["2:14  layers[1].ffn: found 'drop', expected 'run' or 'skip'"]),
    "unknown score": ("token_selection: {score: luck}",
                      ["2:19  token_selection.score: found 'luck', expected " + SCORE_NAMES]),
    "no layers in the model": ("model: {num_layers: 0}", ["2:9  model.num_layers: found 0, expected 1 or more"]),
    "figure without keys": ("measured: {accuracy: 0.5}", [f"2:12  measured.accuracy: found 0.5, {MAPPING}"]),
    "figure with a near key": ("measured: {accuracy: {value: 1, splitt: search}}",
                               ["2:33  measured.accuracy.splitt: unknown key; the nearest known one is 'split'"]),
    "figure that is text": ("measured: {accuracy: {value: high}}",
                            ["2:23  measured.accuracy.value: found 'high', expected a number"]),
    "unknown phase and tokens": ("layers: {1: {ffn: skip, phase: never, tokens: video}}", [
        "2:25  layers[1].phase: found 'never', expected 'both', 'prefill' or 'decode'",
        "2:39  layers[1].tokens: found 'video', expected 'all', 'image' or 'text'"]),
    "schedule for an unknown depth": ("model: {id: m}\nschedule: {fastv: {layer: 2, token_ratio: 0.5}}\nlayer: {}", [
        "3:1  schedule: found no number of layers to expand it for; write `model: {num_layers: 32}`",
        "4:1  layer: unknown key; the nearest known one is 'layers'"]),
    "near schedule": (f"{DEPTH}schedule: {{fastvv: {{layer: 2}}}}",
                      ["3:12  schedule.fastvv: unknown key; the nearest known one is 'fastv'"]),
    "schedule by its name alone": (f"{DEPTH}schedule: fastv", [f"3:1  schedule: found 'fastv', {MAPPING}"]),
    "empty schedule": (f"{DEPTH}schedule: {{}}", [f"3:1  schedule: found no schedule, {GENERATORS}"]),
    "two schedules": (f"{DEPTH}schedule: {{fastv: {{layer: 2, token_ratio: 0}}, linear: {{ratio: 0, max: 1, min: 0}}}}",
                      [f"3:1  schedule: found linear and fastv, {GENERATORS}"]),
    "numbers of a schedule": (f"{DEPTH}schedule: {{fastv: {{layer: -1, token_ratio: 1.5, ratio: 2}}}}", [
        "3:20  schedule.fastv.layer: found -1, expected 0 or more",
        "3:31  schedule.fastv.token_ratio: found 1.5, expected 1 or less",
        "3:49  schedule.fastv.ratio: unknown key; the nearest known one is 'token_ratio'"]),
    "words of a schedule": (f"{DEPTH}schedule: {{interval: {{interval: [], choice: keep, start: yes}}}}", [
        "3:23  schedule.interval.interval: found [], expected a whole number, or 1 or more entries",
        f"3:37  schedule.interval.choice: found 'keep', expected {CHANGING}",
        "3:51  schedule.interval.start: found true, expected a whole number"]),
    "schedule without a number": (f"{DEPTH}schedule: {{fastv: {{layer: 2}}}}",
                                  ["3:12  schedule.fastv.token_ratio: the key is missing"]),
    "options in a policy": (f"{DEPTH}schedule: {{fastv: {{layer: 2, token_ratio: [0.5]}}}}",
                            ["3:30  schedule.fastv.token_ratio: found [0.5], expected a number"]),
    "decay upside down": (f"{DEPTH}schedule: {{linear: {{ratio: 0.5, min: 0.9, max: 0.1}}}}",
                          ["3:12  schedule.linear: found min 0.9 above max 0.1, expected min to be the lower one"]),
    "layer beyond the schedule": (f"{DEPTH}schedule: {{fastv: {{layer: 2, token_ratio: 0}}}}\nlayers: {{9: {{}}}}",
                                        ["4:10  layers[9]: found layer 9, expected 0 to 7"]),
    "no figure": ("measured: {accuracy: {n: 3}}", ["2:12  measured.accuracy.value: the key is missing"]),
}  # fmt: skip

RATIOS = {
    ".nan": "found .nan, expected a finite number",
    "-.inf": "found -.inf, expected a finite number",
    "-0.1": "found -0.1, expected 0 or more",
    "1.01": "found 1.01, expected 1 or less",
    "'0.5'": "found '0.5', expected the number 0.5",
    "5e-1": "found '5e-1', expected the number 0.5",
    "half": "found 'half', expected a number",
    "true": "found true, expected a number",
    "[0.5]": "found [0.5], expected a number",
}

# What is put in the place of something in SPACE, and the problems of the space that this makes.
SPACES = {
    "no model": ("model: {id: m}\n", "", ["1:1  model: the key is missing"]),
    "model as text": ("{id: m}", "m", [f"2:1  model: found 'm', {MAPPING}"]),
    "model without an id": ("{id: m}", "{name: m}", [
        "2:1  model.id: the key is missing",
        "2:9  model.name: unknown key; known: attn_implementation, device, dtype, id, quantization, revision, "
        "trust_remote_code, weights"]),
    "empty id": ("{id: m}", "{id: ''}", ["2:9  model.id: found '', expected a hub id, the path of a folder, or s3://bucket/folder"]),
    "number as id": ("{id: m}", "{id: 5}", ["2:9  model.id: found 5, expected text"]),
    "unknown dtype": ("{id: m}", "{id: m, dtype: fp16}",
                      ["2:16  model.dtype: found 'fp16', expected 'auto', 'float32', 'bfloat16' or 'float16'"]),
    "neither true nor false": ("{id: m}", "{id: m, trust_remote_code: maybe}",
                               ["2:16  model.trust_remote_code: found 'maybe', expected true or false"]),
    "nothing to search": ("[keep, skip_ffn]", "[keep]",
                          ["3:1  layers: every layer can only be kept, so there is nothing to search"]),
    "no choices": ("[keep, skip_ffn]", "[]", ["3:23  layers[0].choices: found [], expected 1 or more entries"]),
    "one choice, no list": ("[keep, skip_ffn]", "skip_ffn",
                            ["3:23  layers[0].choices: found 'skip_ffn', expected a list"]),
    "near choice": ("skip_ffn", "skip_fnn",
                    ["3:39  layers[0].choices[1]: unknown choice 'skip_fnn'; the nearest known one is 'skip_ffn'"]),
    "far choice": ("skip_ffn", "dance", ["3:39  layers[0].choices[1]: unknown choice 'dance'; known: ffn_ratio, "
                                         "freeze_image, head_ratio, keep, parallel, skip_attention, skip_ffn, "
                                         "skip_layer, token_ratio"]),
    "choice of another kind": ("skip_ffn", "5", [
        f"3:39  layers[0].choices[1]: found 5, expected one of {NAMES}, or a mapping such as {{token_ratio: 0.5}}"]),
    "near key of a choice": ("skip_ffn", "{token_ration: 0.5}", [
        "3:40  layers[0].choices[1].token_ration: unknown key; the nearest known one is 'token_ratio'"]),
    "one ratio of several": ("skip_ffn", "{token_ratio: [0.5, 2]}",
                             ["3:59  layers[0].choices[1].token_ratio[1]: found 2, expected 1 or less"]),
    "no ratio": ("skip_ffn", "{token_ratio: []}", [
        "3:40  layers[0].choices[1].token_ratio: found [], expected a number, or 1 or more entries"]),
    "unknown name with a scope": ("skip_ffn", "{choice: [skip_ffn, dance]}", [
        f"3:59  layers[0].choices[1].choice[1]: found 'dance', expected 'keep', or {CHANGING}"]),
    "name beside what it stands for": ("skip_ffn", "{choice: skip_ffn, ffn: skip}", [
        "3:39  layers[0].choices[1]: found choice beside ffn, expected one or the other"]),
    "unknown scopes": ("skip_ffn", "{choice: parallel, phase: [decode, later], tokens: [], norm: none}", [
        "3:74  layers[0].choices[1].phase[1]: found 'later', expected 'both', 'prefill' or 'decode'",
        "3:82  layers[0].choices[1].tokens: found [], expected 'all', 'image' or 'text', or 1 or more entries",
        "3:94  layers[0].choices[1].norm: found 'none', expected 'own' or 'shared', or a list"]),
    "near key beside a name": ("skip_ffn", "{choice: skip_ffn, phse: decode}", [
        "3:58  layers[0].choices[1].phse: unknown key; the nearest known one is 'phase'"]),
    "neither layers nor schedules": ("layers: [{range: all, choices: [keep, skip_ffn]}]\n", "",
                                     ["1:1  layers: the key is missing"]),
    "backwards": ("range: all", "range: 5-2", ["3:11  layers[0].range: found 5-2, expected the lower layer first"]),
    "negative range": ("range: all", "range: -1", [f"3:11  layers[0].range: found -1, {RANGES}"]),
    "range with dots": ("range: all", "range: 2..5", [f"3:11  layers[0].range: found '2..5', {RANGES}"]),
    "range as a list": ("range: all", "range: [2, 5]", [f"3:11  layers[0].range: found [2, 5], {RANGES}"]),
    "range of true": ("range: all", "range: true", [f"3:11  layers[0].range: found true, {RANGES}"]),
    "range beyond any model": ("range: all", "range: 0-99999999",
                               ["3:11  layers[0].range: found '0-99999999', expected layers up to 9999"]),
    "overlap": ("{range: all,", "{range: 3-last, choices: [keep]}, {range: 0-3,",
                ["3:45  layers[1].range: 0-3 overlaps layers[0].range, 3-last"]),
    "window beside a ratio": ("choices: [keep, skip_ffn]", "window: [null, 2], token_ratio: [1, 0.5]",
                              ["3:23  layers[0].window: found a window beside a token ratio below 1, expected one of "
                               "them in a choice"]),
    "no rule": ("[{range: all, choices: [keep, skip_ffn]}]", "[]",
                ["3:1  layers: every layer can only be kept, so there is nothing to search"]),
    "near evaluator": ("flops: {}", "flop: {}",
                       ["4:12  evaluate.flop: there is no evaluator 'flop'; the nearest known one is 'flops'"]),
    "near option": ("flops: {}", "flops: {prompt_token: 3}", [
        "4:20  evaluate.flops.prompt_token: unknown key; the nearest known one is 'prompt_tokens'"]),
    "option of another kind": ("flops: {}", "flops: {prompt_tokens: many}",
                               ["4:20  evaluate.flops.prompt_tokens: found 'many', expected a whole number"]),
    "option deep down": ("{tasks: [a]}", "{tasks: [a], search: {limit: 0, limits: 1}}", [
        "4:55  evaluate.accuracy.search.limit: found 0, expected 1 or more",
        "4:65  evaluate.accuracy.search.limits: unknown key; the nearest known one is 'limit'"]),
    "options as a number": ("flops: {}", "flops: 3", [f"4:12  evaluate.flops: found 3, {MAPPING}"]),
    "no tasks": ("{tasks: [a]}", "{}", ["4:23  evaluate.accuracy: found no tasks for the search and the report split, "
                                        "expected `tasks: [...]`"]),
    "nothing evaluated": ("{flops: {}, accuracy: {tasks: [a]}}", "{}",
                          ["4:1  evaluate: found {}, expected 1 or more entries"]),
    "evaluators as a list": ("{flops: {}, accuracy: {tasks: [a]}}", "[flops]",
                             [f'4:1  evaluate: found ["flops"], {MAPPING}']),
    "no objectives": ("{accuracy: maximize, prefill_flops: minimize}", "{}",
                      ["5:1  objectives: found {}, expected 1 or more entries"]),
    "objective of another evaluator": ("prefill_flops: m", "ttft_ms: m", [
        "5:34  objectives.ttft_ms: no evaluator measures this metric; add latency to evaluate"]),
    "near objective": ("prefill_flops: m", "prefil_flops: m", [
        "5:34  objectives.prefil_flops: no evaluator measures this metric; the nearest known one is 'prefill_flops'"]),
    "wrong direction": ("flops: minimize", "flops: maximize",
                        ["5:34  objectives.prefill_flops: found 'maximize', expected 'minimize'"]),
    "no direction": ("flops: minimize", "flops: lower",
                     ["5:34  objectives.prefill_flops: found 'lower', expected 'maximize' or 'minimize'"]),
    "no direction, near objective": ("maximize, prefill_flops", "up, prefil_flops", [
        "5:14  objectives.accuracy: found 'up', expected 'maximize' or 'minimize'",
        "5:28  objectives.prefil_flops: no evaluator measures this metric; the nearest known one is 'prefill_flops'"]),
}  # fmt: skip

# What is put after SPACE, and the problems that it makes.
LONGER = {
    "near schedule and empty options": ("schedules: [{fast: {}}, {fastv: {layer: [], token_ratio: [0.5, 2]}}]", [
        "6:14  schedules[0].fast: unknown key; the nearest known one is 'fastv'",
        "6:34  schedules[1].fastv.layer: found [], expected a whole number, or 1 or more entries",
        "6:64  schedules[1].fastv.token_ratio[1]: found 2, expected 1 or less"]),
    "intervals": ("schedules: [{interval: {interval: [0, []], choice: [skip_ffn, keep], phase: never}}]", [
        "6:36  schedules[0].interval.interval[0]: found 0, expected 1 or more, or a list",
        "6:39  schedules[0].interval.interval[1]: found [], expected a whole number, or 1 or more entries",
        f"6:63  schedules[0].interval.choice[1]: found 'keep', expected {CHANGING}",
        "6:70  schedules[0].interval.phase: found 'never', expected 'both', 'prefill' or 'decode', or a list"]),
    "groups that overlap or differ": ("tied: [[2, 3], [3, 4, 4]]", [
        "6:17  tied[1][0]: layer 3 is in tied[0] already, expected it in one group",
        "6:23  tied[1][2]: layer 4 is in tied[1] already, expected it in one group"]),
    "near key of groups": ("tied: {evry: 2}", [
        "6:1  tied.every: the key is missing", "6:8  tied.evry: unknown key; the nearest known one is 'every'"]),
    "near key of a run": ("forbid: [{consecutive: skip_ffn, more: 1}]", [
        "6:10  forbid[0].more_than: the key is missing",
        "6:34  forbid[0].more: unknown key; the nearest known one is 'more_than'"]),
    "forbidden choices that are none": ("forbid: [{2: [], 3: 4}, {consecutive: skip_fn, more_than: 0}]", [
        "6:11  forbid[0][2]: found [], expected 1 or more entries",
        f"6:18  forbid[0][3]: found 4, expected one of {NAMES}, or a mapping such as {{token_ratio: 0.5}}",
        "6:26  forbid[1].consecutive: unknown choice 'skip_fn'; the nearest known one is 'skip_ffn'",
        "6:48  forbid[1].more_than: found 0, expected 1 or more"]),
    "forbidden choices that no layer has": ("forbid: [{2: keep, 3: parallel}, {consecutive: parallel, more_than: 2}]", [
        "6:20  forbid[0][3]: layer 3 cannot be parallel; known: keep, skip_ffn",
        "6:35  forbid[1].consecutive: no layer can be parallel; known: keep, skip_ffn"]),
    "stop": ("search: {stop: {stagnation: 0, gain: -1, minutes: 0, minute: 1}}", [
        "6:17  search.stop.stagnation: found 0, expected 1 or more",
        "6:32  search.stop.gain: found -1, expected 0 or more",
        "6:42  search.stop.minutes: found 0, expected more than 0",
        "6:54  search.stop.minute: unknown key; the nearest known one is 'minutes'"]),
    "token selection": ("token_selection: {score: [], reselect: [once, twice]}", [
        "6:19  token_selection.score: found [], expected text, or 1 or more entries",
        "6:47  token_selection.reselect[1]: found 'twice', expected 'each_layer' or 'once'"]),
}  # fmt: skip

# The same where it is one, after "6:".
MORE = {
    "no schedules": ("schedules: []", "1  schedules: found [], expected 1 or more entries"),
    "schedules without a list": ("schedules: {fastv: 1}", '1  schedules: found {"fastv": 1}, expected a list'),
    "schedule by its name alone": ("schedules: [fastv]", f"13  schedules[0]: found 'fastv', {MAPPING}"),
    "empty schedule": ("schedules: [{}]", f"13  schedules[0]: found no schedule, {GENERATORS}"),
    "two schedules in one": (
        "schedules: [{fastv: {layer: 2, token_ratio: 0.5}, interval: {interval: 2, choice: parallel}}]",
        f"13  schedules[0]: found fastv and interval, {GENERATORS}",
    ),
    "decays upside down": (
        "schedules: [{linear: {ratio: 0.5, min: [0.1, 0.9], max: [0.8, 0.95]}}]",
        "14  schedules[0].linear: found min 0.9 above max 0.8, expected min to be the lower one",
    ),
    "groups as a number": ("tied: 3", "1  tied: found 3, expected a list, or a mapping of keys to values"),
    "group of one": ("tied: [[2]]", "8  tied[0]: found [2], expected 2 or more entries"),
    "group by name": ("tied: [[a, 3]]", "9  tied[0][0]: found 'a', expected a whole number"),
    "groups of one": ("tied: {every: 1}", "8  tied.every: found 1, expected 2 or more"),
    "forbid without a list": ("forbid: {2: skip_ffn, 3: skip_ffn}",
                              '1  forbid: found {"2": "skip_ffn", "3": "skip_ffn"}, expected a list'),
    "forbidden by its name alone": ("forbid: [skip_ffn]", f"10  forbid[0]: found 'skip_ffn', {MAPPING}"),
    "forbidden in one layer": ("forbid: [{2: skip_ffn}]",
                               '10  forbid[0]: found {"2": "skip_ffn"}, expected 2 or more entries'),
    "forbidden in a layer by name": ("forbid: [{two: skip_ffn, 3: skip_ffn}]",
                                     "11  forbid[0].two: found 'two', expected a whole number"),
    "dense forbidden": ("forbid: [{2: keep, 3: [keep, skip_ffn]}]",
                        "10  forbid[0]: keep is forbidden; the dense model is trial 0 of every study, so every layer "
                        "can be kept"),
    "key twice": ("model: {id: n}", "1  model: duplicate key"),
    "constraint that no evaluator measures": (
        "constraints: {ttft_ms: '<= 3'}",
        "15  constraints.ttft_ms: no evaluator measures this metric; add latency to evaluate",
    ),
    "strictly": ("constraints: {accuracy: '> 0.9'}", f"15  constraints.accuracy: found '> 0.9', {BOUNDS}"),
    "bare number": ("constraints: {accuracy: 0.9}", f"15  constraints.accuracy: found 0.9, {BOUNDS}"),
    "infinite bound": ("constraints: {accuracy: '>= 1e999'}", f"15  constraints.accuracy: found '>= 1e999', {BOUNDS}"),
    "list of constraints": ("constraints: [accuracy]", f'1  constraints: found ["accuracy"], {MAPPING}'),
    "many trials": ("search: {trials: many}", "10  search.trials: found 'many', expected a whole number"),
    "no trials": ("search: {trials: 0}", "10  search.trials: found 0, expected 1 or more"),
    "half a trial": ("search: {trials: 1.5}", "10  search.trials: found 1.5, expected a whole number"),
    "yes trials": ("search: {trials: yes}", "10  search.trials: found true, expected a whole number"),
    "near key of search": ("search: {trails: 5}", "10  search.trails: unknown key; the nearest known one is 'trials'"),
    "seed too large": ("search: {seed: 4294967296}",
                       "10  search.seed: found 4294967296, expected less than 4294967296"),
    "near rule": ("search: {start: [last, fastvv]}",
                  "24  search.start[1]: unknown baseline 'fastvv'; the nearest known one is 'fastv'"),
    "near sampler": ("search: {sampler: nsga}",
                     "10  search.sampler: found 'nsga', expected 'auto', 'nsga2', 'nsga3', 'tpe' or 'random'"),
    "some workers": ("workers: {count: some}", "11  workers.count: found 'some', expected a whole number, or 'auto'"),
    "no workers": ("workers: {count: 0}", "11  workers.count: found 0, expected 1 or more, or 'auto'"),
    "a model on two GPUs": ("workers: {gpus: 2}", "11  workers.gpus: found 2, expected 1 or less, or 'auto'"),
    "endless GPUs": ("workers: {gpus: .inf}", "11  workers.gpus: found .inf, expected a finite number, or 'auto'"),
}  # fmt: skip


def cases() -> list[Any]:
    """Text, problems and hint of every broken file."""
    found = [pytest.param(*case, *[None] * (3 - len(case)), id=name) for name, case in YAML.items()]
    found += [
        pytest.param(f"{POLICY}{text}\n", lines, None, id=f"policy: {name}") for name, (text, lines) in POLICIES.items()
    ]
    for ratio, reason in RATIOS.items():
        problem = f"2:14  layers[1].token_ratio: {reason}"
        found.append(
            pytest.param(f"{POLICY}layers: {{1: {{token_ratio: {ratio}}}}}", [problem], None, id=f"ratio {ratio}")
        )
    for name, (old, new, lines) in SPACES.items():
        assert old in SPACE, old
        found.append(pytest.param(SPACE.replace(old, new), lines, None, id=f"space: {name}"))
    longer = LONGER | {name: (text, [f"6:{line}"]) for name, (text, line) in MORE.items()}
    for name, (text, lines) in longer.items():
        found.append(pytest.param(f"{SPACE}{text}\n", lines, None, id=f"space: {name}"))
    return found

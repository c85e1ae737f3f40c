"""Ways of holding a model: shared, copied, saved, wrapped, entered elsewhere, trained."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from dataclasses import replace

import torch
import transformers as t
from ways import ANSWER, Case, Found, answers, generated

from families import Batch, forget
from skipsearch.policies.errors import ModelError


def threads(case: Case) -> list[Found]:
    """Four threads share the model, each with prompts of its own."""
    family, found = case.batch.family, {}
    # Made before: they are drawn from torch's one random state.
    rows = [[(2 + number, "image", 3) if family.image_tokens else (6 + number,)] for number in range(4)]
    cases = [replace(case, batch=Batch.of(family, row)) for row in rows]

    def work(number: int) -> None:
        own = cases[number]
        told = {"max_new_tokens": ANSWER, "return_dict_in_generate": True, "output_logits": True}
        for _ in range(2):
            out = case.model.generate(**own.inputs, do_sample=False, **told)
            found[number] = answers(own, out.sequences[:, -ANSWER:], out.logits)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return [one for number in range(4) for one in found[number]]


def copied(case: Case) -> list[Found]:
    return generated(replace(case, model=copy.deepcopy(case.model)))


def pickled(case: Case) -> list[Found]:
    return generated(replace(case, model=pickle.loads(pickle.dumps(case.model))))


def saved(case: Case) -> list[Found]:
    file = io.BytesIO()
    torch.save(case.model, file)
    file.seek(0)
    return generated(replace(case, model=torch.load(file, weights_only=False)))


def wrapped(case: Case) -> list[Found]:
    """Generation by what torch.compile returns."""
    return generated(replace(case, model=torch.compile(case.model, backend="eager")))


def past_the_head(case: Case) -> list[Found]:
    """Called at the base model, whose states go through the head by hand."""
    forget(case.model)
    with torch.no_grad():
        states = case.model.model(**case.inputs).last_hidden_state
        logits = case.model.get_output_embeddings()(states)
    rows = enumerate(case.batch.ids)
    return [case.found(row, tuple(ids), len(ids), 0, case.batch.real(logits, row, "left")) for row, ids in rows]


def checkpointed(case: Case) -> list[Found]:
    """Training with gradient checkpoints, whose gradients are those without."""
    case = case.alone
    model, grads = case.model, []
    for enabled in (False, True):
        if enabled:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
        forget(model)
        try:
            out = model(**case.inputs, labels=case.inputs["input_ids"], use_cache=False)
            model.zero_grad()
            out.loss.backward()
        finally:
            model.eval()
            model.gradient_checkpointing_disable()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        model.zero_grad()
    assert grads[0]
    for plain, again in zip(*grads, strict=True):
        torch.testing.assert_close(again, plain)
    ids = case.batch.ids[0]
    return [case.found(0, tuple(ids), len(ids), 0, out.logits[0].detach())]


def continuous(case: Case) -> list[Found]:
    """Continuous batching: packed rows, a paged cache. It gives tokens and no logits; each must be the likeliest."""
    case = replace(case, batch=Batch.of(case.batch.family, [(9,), (5,)]))
    settings = t.GenerationConfig(max_new_tokens=ANSWER, do_sample=False, eos_token_id=98, pad_token_id=0)
    sizes = t.ContinuousBatchingConfig(num_blocks=8, page_size=16, max_batch_tokens=64, max_requests_per_batch=2)
    before = case.model.config._attn_implementation
    try:
        out = case.model.generate_batch(
            inputs=case.batch.ids, generation_config=settings, continuous_batching_config=sizes, warmup=False
        )
    finally:
        case.model.set_attn_implementation(before)
    results = list(out.values())
    errors = [result.error for result in results if result.error]
    if errors:
        # The batch runs in a thread of its own, and hands the error over as text.
        assert "cannot be used under this policy" in errors[0]
        raise ModelError(errors[0])
    return [
        case.found(row, (*ids, *result.generated_tokens), len(ids), len(ids) - 1)
        for row, (ids, result) in enumerate(zip(case.batch.ids, results, strict=True))
    ]

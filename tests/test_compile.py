"""torch.compile of a whole model, without a graph break, gives what eager gives, for every rule."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import untied
from cases import assert_same, gradients


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


GRAPHS = (
    "bp", "brsf", "fa", "kp", "mkp", "sa", "aa", "wm(decay=balanced)", "wm(noise=normal)", "ia(reverse=true)",
    "ia(fraction=0.5)", "aa(every=2)", "pfa(expand=2)", "ldfa(rank=2)",
)  # fmt: skip
"""A rule of each kind of graph: B transported, drawn in the graph, at rest, or copied; R without data, in closed form,
with a measured coefficient, of noise, by autograd, of a part of the batch, now and then; two kernels, of which one or
both learn. Broadcast rules compile in test_broadcast.py."""
by_graph = pytest.mark.parametrize("rule", GRAPHS)


def network(rule: str | None, dense: bool = True, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, stride=2, padding=1, padding_mode="reflect"), nn.ReLU(), nn.Flatten())
    if dense:
        model.append(nn.Linear(36, 3))
    model = model.to(dtype)
    if rule is not None:
        untied.untie_(model, rule)
    return model


def batch() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(4, 2, 6, 6, dtype=torch.float64, generator=g), torch.randint(3, (4,), generator=g)


def step(
    model: nn.Module, run: Any, x: Tensor, labels: Tensor, i: int, seed: int = 5, align: bool = True
) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    with untied.record(model, progress=i / 10, step=i, align=align) as tape:
        task = nn.functional.cross_entropy(run(x), labels)
    R = tape.penalty()
    (task + R).backward()
    return task.detach(), R.detach()


@by_graph
def test_a_compiled_step_is_the_eager_one(rule: str) -> None:
    """Three steps: the first compiles; later ones must neither fall back nor compile again and again."""
    eager, model = network(rule, dense=False), network(rule, dense=False)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    x, labels = batch()
    for i in range(3):
        eager.zero_grad(), model.zero_grad()
        wanted = step(eager, eager, x, labels, i)
        got = step(model, compiled, x, labels, i)
        if rule != "brsf":  # it draws within the graph, in an order of the compiler's
            for a, b in zip(got, wanted, strict=True):
                torch.testing.assert_close(a, b)
            assert_same(gradients(model), gradients(eager))
        else:
            assert gradients(model).keys() == gradients(eager).keys()
            assert all(
                (a is None) == (b is None)
                for a, b in zip(gradients(model).values(), gradients(eager).values(), strict=True)
            )
    assert counter.frame_count <= 2


@pytest.mark.parametrize(
    "rule", ["aa", "ia(reverse=true)", "wm(noise=normal)", "kp", "ia(fraction=0.5)", "aa(every=2)"]
)
def test_phases_of_the_task_alone_compile_once(rule: str) -> None:
    """Between phases the graph is another, as it is where a rule rests by ``every``: two in all."""
    eager, model = network(rule), network(rule)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for i in range(8):
        eager.zero_grad(), model.zero_grad()
        step(eager, eager, *batch(), i, align=i % 4 < 2)
        step(model, compiled, *batch(), i, align=i % 4 < 2)
        assert_same(gradients(model), gradients(eager))
    assert counter.frame_count <= 2


def test_a_schedule_does_not_compile_again() -> None:
    model = network(None)
    untied.untie_(model, untied.rules.InformationAlignment(amp=lambda t: 1 + t, null=lambda t: t + 0.5))
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    eager = network(None)
    untied.untie_(eager, untied.rules.InformationAlignment(amp=lambda t: 1 + t, null=lambda t: t + 0.5))
    for i in range(6):
        eager.zero_grad(), model.zero_grad()
        step(model, compiled, *batch(), i)
        step(eager, eager, *batch(), i)
        assert_same(gradients(model), gradients(eager))
    assert counter.frame_count <= 2


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("n", [8, 9], ids=["blocks", "around"])
def test_a_compiled_fraction_keeps_the_layout(layout: torch.memory_format, n: int) -> None:
    """What it copies stays channels last: kernels would convert it otherwise, once for each product."""
    x = torch.arange(n * 2 * 3 * 3, dtype=torch.float64).view(n, 2, 3, 3).contiguous(memory_format=layout)
    with untied.record(network("aa(fraction=1/4)")) as tape:
        wanted = tape.window(x, n, 2)
        found = torch.compile(lambda x: tape.window(x, n, 2), fullgraph=True, backend="aot_eager")(x)
    assert torch.equal(found, wanted) and found.is_contiguous(memory_format=layout)


def test_the_place_of_a_fraction_is_not_baked_in() -> None:
    model, eager = network("wm(fraction=1/4)"), network("wm(fraction=1/4)")
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for i in range(6):
        eager.zero_grad(), model.zero_grad()
        step(model, compiled, *batch(), i, seed=i)
        step(eager, eager, *batch(), i, seed=i)
        assert_same(gradients(model), gradients(eager))
    assert counter.frame_count <= 2


def test_a_whole_loss_function_compiles() -> None:
    model, eager = network("aa"), network("aa")

    @torch.compile(fullgraph=True, backend="aot_eager")
    def loss(x: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(x), labels)

    x, labels = batch()
    with untied.record(model) as tape:
        task = loss(x, labels)
    (task + tape.penalty()).backward()
    step(eager, eager, x, labels, 0)
    assert_same(gradients(model), gradients(eager))


def test_attention_compiles() -> None:
    torch.manual_seed(0)
    model: Any = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    untied.untie_(model, "ia")
    x = torch.randn(2, 3, 8)
    results = []
    for run in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        with untied.record(model) as tape:
            task = run(x).square().sum()
        (task + tape.penalty()).backward()
        results.append(gradients(model))
    assert_same(*results, rtol=1e-4, atol=1e-5)


def test_a_compiled_model_evaluates() -> None:
    model, x = network("aa").eval(), batch()[0]
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))


@by_graph
def test_a_whole_step_is_one_graph(rule: str) -> None:
    """Network, loss and R together; schedules, phases and the place of a fraction do not compile anew."""
    eager, model = network(rule), network(rule)
    counter = CompileCounterWithBackend("aot_eager")

    def passed(model: nn.Module, tape: untied.Tape, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return nn.functional.cross_entropy(model(x), labels), tape.penalty()

    compiled = torch.compile(passed, fullgraph=True, backend=counter)
    for i in range(3):
        results = []
        for net, run in ((eager, passed), (model, compiled)):
            net.zero_grad()
            torch.manual_seed(i)
            with untied.record(net, progress=i / 10, step=2 * i) as tape:
                J, R = run(net, tape, *batch())
            (J + R).backward()
            results.append((J.detach(), R.detach()))
        if rule != "brsf":
            torch.testing.assert_close(*results)
            assert_same(gradients(model), gradients(eager))
    assert counter.frame_count <= 2

"""project, reconstruct and correlate are one linear map seen three ways, for every layer type."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cases import LAYERS, LayerCase, build, build_untied, by_layer, geometry_of
from untied import geometry as functions
from untied.geometry import DENSE, Convolution, Geometry

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")  # PyTorch's own, from the plain layer


def dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum()


@by_layer
def test_project_and_bias_are_the_plain_layer(case: LayerCase) -> None:
    layer, x = build(case)
    plain = layer(x, **case.call)
    untied_layer, _ = build_untied(case)
    g = geometry_of(untied_layer, x, **case.call)
    y = g.project(x, layer.weight)
    torch.testing.assert_close(y if layer.bias is None else g.add_bias(y, layer.bias), plain)
    assert torch.equal(g.forward(g.prepare(x), layer.weight, layer.bias), plain)


@by_layer
def test_the_positions_that_are_read_are_those_with_a_derivative(case: LayerCase) -> None:
    layer, x = build_untied(case)
    own = geometry_of(layer, x, **case.call)
    g = own.prepared()
    x = (x if g is own else own.prepare(x)).detach().requires_grad_()
    y = g.project(x, torch.ones_like(layer.weight))
    assert y.shape == own.project(build_untied(case)[1], layer.weight).shape  # behind the padding it is the same layer
    if not isinstance(g, Convolution):
        assert g is own and g.read(x) is None
        return
    reached = torch.autograd.grad(y.sum(), x)[0].reshape(-1, *x.shape[-g.dims :])[0] > 0
    read = g.read(x)
    expected = torch.zeros_like(reached)
    expected[torch.meshgrid([torch.tensor(at) for at in read], indexing="ij") if read else ...] = True
    assert torch.equal(reached, expected) and (read is None) == bool(reached.all())


@by_layer
def test_backward_gives_what_is_needed_and_nothing_else(case: LayerCase) -> None:
    layer, x = build_untied(case)
    g = geometry_of(layer, x, **case.call)
    x, B = g.prepare(x.detach()), layer.backward_weight
    error = torch.randn_like(g.forward(x, layer.weight, None))
    shape = None if layer.bias is None else list(layer.bias.shape)
    for needs in itertools.product((False, True), repeat=3):
        given = g.backward(error, x, B, shape, needs)
        assert [d is not None for d in given] == [needs[0], needs[1], needs[2] and shape is not None]

    dx, dW, db = g.backward(error, x, B, shape, (True, True, True))
    x, K = x.requires_grad_(), B.detach().clone().requires_grad_()
    bias = None if shape is None else torch.zeros(shape, dtype=x.dtype, requires_grad=True)
    expected = torch.autograd.grad(g.forward(x, K, bias), [t for t in (x, K, bias) if t is not None], error)
    for got, wanted in zip((dx, dW, db), expected, strict=False):
        if got is not None:
            torch.testing.assert_close(got, wanted)


@by_layer
def test_counts_of_examples_and_positions(case: LayerCase) -> None:
    layer, x = build_untied(case)
    g = geometry_of(layer, x, **case.call)
    assert g.batch_size(x) == (len(x) if case.batched else None)
    if not case.batched:
        x = x.unsqueeze(0)
    # With kernel and inputs of ones and no border, each output element of correlate counts the positions.
    y = g.project(x, layer.weight)
    if isinstance(g, Convolution):
        places = x if g.transposed else y
        assert g.positions(x, y) == math.prod(places.shape[2:])
    else:
        assert g.positions(x, y) == math.prod(y.shape[1:-1])


def test_positions_count_how_often_a_tap_is_used() -> None:
    g, ones = Convolution.of(nn.Conv2d(1, 1, 3, stride=2)), torch.ones(1, 1, 9, 9)
    y = torch.ones_like(g.project(ones, torch.ones(1, 1, 3, 3)))
    assert g.correlate(ones, y).unique().tolist() == [g.positions(ones, y)] == [16]
    g, ones = Convolution.of(nn.ConvTranspose2d(1, 1, 3, stride=2)), torch.ones(1, 1, 4, 4)
    y = torch.ones_like(g.project(ones, torch.ones(1, 1, 3, 3)))
    assert g.correlate(ones, y).unique().tolist() == [g.positions(ones, y)] == [16]


@by_layer
def test_without_like_the_smallest_input_comes_back(case: LayerCase) -> None:
    layer, x = build_untied(case)
    g = geometry_of(layer, x, **case.call)
    y = g.project(x.detach(), layer.weight)
    back = g.reconstruct(y, layer.weight)
    assert all(a <= b for a, b in zip(back.shape, x.shape, strict=True))
    assert g.project(back, layer.weight).shape == y.shape
    if g is DENSE or g.transposed:
        assert back.shape == x.shape


def test_dense_functions_are_the_matrix_products_of_the_paper() -> None:
    torch.manual_seed(0)
    x, y, K = torch.randn(5, 4), torch.randn(5, 3), torch.randn(3, 4)
    assert torch.equal(functions.project(x, K), x @ K.T)
    assert torch.equal(functions.reconstruct(y, K), y @ K)
    assert torch.equal(functions.correlate(x, y), y.T @ x)


def test_functions_take_a_geometry() -> None:
    torch.manual_seed(0)
    g, x, K = Convolution.of(nn.Conv1d(2, 3, 3, stride=2)), torch.randn(2, 2, 8), torch.randn(3, 2, 3)
    y = functions.project(x, K, g)
    assert torch.equal(y, g.project(x, K))
    assert torch.equal(functions.reconstruct(y, K, g, like=x), g.reconstruct(y, K, like=x))
    assert functions.reconstruct(y, K, g).shape == (2, 2, 7)
    assert torch.equal(functions.correlate(x, y, g), g.correlate(x, y))


@by_layer
def test_an_empty_batch_gives_zero_gradients(case: LayerCase) -> None:
    if not case.batched:
        pytest.skip("has no batch")
    layer, x = build_untied(case)
    g = geometry_of(layer, x, **case.call)
    empty = x.detach()[:0]
    y = g.project(empty, layer.weight)
    assert len(y) == 0
    assert g.reconstruct(y, layer.weight, like=empty).shape == empty.shape
    assert torch.equal(g.correlate(empty, y), torch.zeros_like(layer.weight))


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """Any convolution that PyTorch accepts, and an input size that it accepts."""
    dims, groups = draw(st.integers(1, 2)), draw(st.integers(1, 2))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    kernel, dilation, stride, size = each(1, 4), each(1, 3), each(1, 4), each(1, 9)
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    transposed = draw(st.booleans())
    if transposed:
        rest = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
        kind, options = (nn.ConvTranspose1d, nn.ConvTranspose2d)[dims - 1], {"output_padding": rest}
    else:
        kind, options = (nn.Conv1d, nn.Conv2d)[dims - 1], {"padding_mode": mode}
    padding = draw(
        st.just("same") if not transposed and max(stride) == 1 and draw(st.booleans()) else st.just(each(0, 3))
    )
    layer = kind(groups, 2 * groups, kernel, stride, padding, dilation=dilation, groups=groups, **options)
    return layer.double(), (2, groups, *size)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(convolutions())
def test_adjoint_identity_of_any_convolution(drawn: tuple[nn.Module, tuple[int, ...]]) -> None:
    layer, shape = drawn
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    try:
        plain = layer(x)
    except (RuntimeError, ValueError):  # not a convolution: the kernel is larger than the input, or the like
        assume(False)
    assume(plain.numel() > 0)
    g = Convolution.of(layer)
    K = layer.weight.detach()
    assert torch.equal(g.forward(g.prepare(x), K, layer.bias), plain)
    y = torch.randn_like(plain)
    dx, dW = torch.autograd.grad(plain, (x, layer.weight), y)
    torch.testing.assert_close(g.reconstruct(y, K, like=x), dx)
    torch.testing.assert_close(g.correlate(x, y), dW)


def test_a_geometry_without_its_methods_says_which_is_missing() -> None:
    x = torch.zeros(2, 2)
    for method, arguments in (("project", (x, x)), ("reconstruct", (x, x)), ("correlate", (x, x))):
        with pytest.raises(NotImplementedError, match=f"Geometry.{method}"):
            getattr(Geometry(), method)(*arguments)


def test_three_methods_are_enough_for_a_new_geometry() -> None:
    class Transposed(Geometry):
        def project(self, x: Tensor, K: Tensor) -> Tensor:
            return x @ K

        def reconstruct(self, y: Tensor, K: Tensor, like: Tensor | None = None) -> Tensor:
            return y @ K.T

        def correlate(self, x: Tensor, y: Tensor) -> Tensor:
            return x.flatten(0, -2).T @ y.flatten(0, -2)

    torch.manual_seed(0)
    g, dense = Transposed(), DENSE
    x, K, bias, error = torch.randn(5, 2, 4), torch.randn(4, 3), torch.randn(3), torch.randn(5, 2, 3)
    torch.testing.assert_close(g.forward(g.prepare(x), K, bias), dense.forward(x, K.T, bias))
    ours, theirs = (h.backward(error, x, k, [3], (True, True, True)) for h, k in ((g, K), (dense, K.T)))
    torch.testing.assert_close(ours[0], theirs[0])
    torch.testing.assert_close(ours[1], theirs[1].T)
    torch.testing.assert_close(ours[2], theirs[2])
    assert (g.positions(x, error), g.batch_size(x)) == (2, 5)


def test_geometries_of_equal_layers_are_equal() -> None:
    assert Convolution.of(nn.Conv2d(1, 2, 3)) == Convolution.of(nn.Conv2d(4, 5, 3))
    assert Convolution.of(nn.Conv2d(1, 2, 3)) != Convolution.of(nn.Conv2d(1, 2, 3, stride=2))
    assert len({c.name for c in LAYERS}) == len(LAYERS)

"""Derivatives that the operators lack: forward mode and torch.func say so, compiled or not; none is zero in silence."""

import pytest
import torch
import torch.autograd.forward_ad as forward_ad

import cox_ops

X, Y, V, W = torch.randn(4, 3), torch.randn(5, 3), torch.randn(2, 5, 3), torch.randn(2, 3, 3)
FUNCTIONS = {
    "pairwise_distances": lambda x: cox_ops.pairwise_distances(x, Y).sum(),
    "nearest_anchor": lambda x: cox_ops.nearest_anchor(x, V)[0].sum(),
    "modality_agreement": lambda x: cox_ops.modality_agreement(torch.stack([x, 2 * x]))[2].sum(),
    "heads_agreement": lambda x: cox_ops.heads_agreement(x, W, W[..., 0])[2].sum(),
    "mmd": lambda x: cox_ops.mmd(x, Y),
}
FORWARD = {
    "jvp": lambda f: torch.func.jvp(f, (X,), (torch.ones_like(X),)),
    "jacfwd": lambda f: torch.func.jacfwd(f)(X),
    "linearize": lambda f: torch.func.linearize(f, X),
}
REVERSE = {
    "grad": lambda f: torch.func.grad(f)(X),
    "vjp": lambda f: torch.func.vjp(f, X)[1](torch.tensor(1.0)),
    "jacrev": lambda f: torch.func.jacrev(f)(X),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("by", [*FORWARD, *REVERSE])
def test_says_what_it_lacks(name, by):
    words = "forward-mode derivative" if by in FORWARD else "derivative in torch.func"
    with pytest.raises(NotImplementedError, match=f"^{name} has no {words}.*$"):
        {**FORWARD, **REVERSE}[by](FUNCTIONS[name])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_dual_tensors(name):
    """Refused, also by what was compiled without them; without a tangent they are like others."""
    torch._dynamo.reset()
    f = FUNCTIONS[name]
    compiled = torch.compile(f, backend="aot_eager")
    value = f(X)
    torch.testing.assert_close(compiled(X), value)
    with forward_ad.dual_level():
        torch.testing.assert_close(f(X), value)
        torch.testing.assert_close(compiled(X), value)
        for g in (f, compiled):
            with pytest.raises(NotImplementedError, match=f"{name} has no forward-mode derivative"):
                g(forward_ad.make_dual(X, torch.ones_like(X)))
    torch.testing.assert_close(compiled(X), value)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("by", ["jvp", "grad"])
def test_compiled_transforms_raise(name, by):
    """In whose words depends on torch; never zeros."""
    torch._dynamo.reset()
    with pytest.raises(Exception, match="forward-mode derivative|functorch|torch.func"):
        torch.compile(lambda: {**FORWARD, **REVERSE}[by](FUNCTIONS[name]), backend="aot_eager")()


def test_what_has_no_derivative_goes_through():
    def best(x):
        return x[cox_ops.top_anchors(x.detach(), 2)].sum()

    assert torch.equal(torch.func.grad(best)(torch.tensor([3.0, 1.0, 2.0])), torch.tensor([0.0, 1.0, 1.0]))

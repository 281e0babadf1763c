"""``--portable``: the suite as a processor sees it that runs none of the optional kernels.
``--slow``: with the tests that are marked slow, one of which takes ``--soak-seconds``."""

from importlib.metadata import version

import pytest
import torch

# (where PyTorch keeps it, its name) of every kernel that a processor may lack
OPTIONAL = (
    ("mkl", "_mkl_reorder_linear_weight"),
    ("mkl", "_mkl_linear"),
    ("mkldnn", "_reorder_linear_weight"),
    ("mkldnn", "_linear_pointwise"),
    ("onednn", "qlinear_prepack"),
    ("onednn", "qlinear_pointwise"),
    (None, "_weight_int8pack_mm"),
)


def lacking(name):
    def raises(*_args, **_settings):
        raise RuntimeError(f"{name}: this path needs the cpu support that is not there")

    return raises


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, too")
    parser.addoption(
        "--soak-seconds", type=float, default=600, help="how long --slow lets clients ask a server"
    )
    parser.addoption(
        "--portable", action="store_true", help="let every optional kernel of PyTorch raise"
    )


def pytest_collection_modifyitems(config, items):
    if config.getoption("--slow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="slow: make test-all runs it"))


def pytest_configure(config):
    if not config.getoption("--portable"):
        return
    patch = pytest.MonkeyPatch()
    for space, name in OPTIONAL:
        owner = torch if space is None else getattr(torch.ops, space)
        patch.setattr(owner, name, lacking(name), raising=False)
    config.add_cleanup(patch.undo)


def pytest_report_header(config):
    used = ("torch", "transformers", "tokenizers", "huggingface_hub", "pydantic", "typer", "numpy")
    lines = ["with " + ", ".join(f"{name} {version(name)}" for name in used)]
    return lines + ["optional kernels: all raise"] * config.getoption("--portable")

"""The drafters that ship, on the embedded model."""

import pytest
from tests.doctor.test_doctor import wrong
from tests.doctor.world import calibrated

from specblock.doctor.examine import examine
from specblock.doctor.patient import Request
from specblock.engine.loading import load_drafter
from specblock.engine.named_drafter import DEFAULT_MODEL, shipped_drafter
from specblock.target.loading.zoo import load_model


@pytest.fixture(scope="module")
def loaded():
    return load_model(DEFAULT_MODEL)


@pytest.mark.parametrize("kind", ["", pytest.param("-eagle3", marks=pytest.mark.slow)])
def test_it_comes_out_clean(loaded, tmp_path, kind):
    shipped = shipped_drafter(DEFAULT_MODEL)
    folder = shipped.with_name(shipped.name + kind)
    calibrated(tmp_path, loaded[0], load_drafter(folder, *loaded).model)
    request = Request(
        folder, "embedded", lambda: loaded, limit=2, max_new_tokens=24, cache_dir=tmp_path
    )
    found = {one.name: one for one in examine(request)}
    assert not wrong(found)
    machine = ("kernels", "pays")  # which is not the drafter's
    odd = [one for name, one in found.items() if one.verdict != "ok" and name not in machine]
    assert not odd

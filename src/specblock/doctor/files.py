"""The drafter's folder by itself, and whether it is one for this target."""

from __future__ import annotations

from specblock.budget.survival_file import load_survival
from specblock.doctor.finding import Verdict, ok, skipped, warning, wrong
from specblock.doctor.patient import Patient
from specblock.drafters.checkpoint import WEIGHTS, read_stored
from specblock.drafters.config import FEATURE_CONVENTION, read_json
from specblock.drafters.eagle3.convert import convert_eagle3
from specblock.drafters.eagle3.published_config import LAYERS, flat, is_published
from specblock.drafters.fingerprint import tokenizer_fingerprint
from specblock.drafters.registry import KINDS, read_config
from specblock.drafters.specblock.convert import convert_published
from specblock.drafters.vocabulary import check_vocabulary_map
from specblock.engine.loading import load_drafter
from specblock.errors import FeatureLayersError, VocabularyMapError


def target_model(patient: Patient) -> Verdict:
    """The target can be loaded, and can verify a tree."""
    patient.network, patient.tokenizer = patient.request.load()
    target = patient.target
    del patient.target  # the drafter's features are not known yet
    return ok(
        f"{type(patient.network).__name__}, {patient.layers} layers, {patient.vocabulary} tokens",
        architecture=type(patient.network).__name__,
        layers=patient.layers,
        vocabulary=patient.vocabulary,
        context=target.positions.trained,
        exact=target.exact,
    )


def drafter_files(patient: Patient) -> Verdict:
    """Config and weights are there, whole, and of each other."""
    data = read_json(patient.folder)
    if "drafter_type" not in data:
        return _published(patient, data)
    kind = KINDS[read_config(patient.folder).drafter_type]
    load_survival(patient.folder)  # for what it raises
    patient.config, patient.tensors = read_stored(patient.folder, kind.config, kind.network)
    count = sum(tensor.numel() for tensor in patient.tensors.values())
    return ok(
        f"{patient.config.drafter_type} drafter, {count / 1e6:.1f} million numbers",
        layout="specblock",
        kind=patient.config.drafter_type,
        numbers=count,
    )


def _published(patient: Patient, data: dict) -> Verdict:
    """A folder as others publish it is converted for the examination alone.

    What another check is about is left to it.
    """
    if patient.network is None:
        return skipped("its target is needed to read a published folder")
    eagle3, folder = is_published(data), patient.folder
    layout = "the authors'" if "speculators_model_type" not in data else "speculators'"
    out = patient.workplace / "converted"
    advice = f"run `specblock convert {folder} OUT --target {patient.request.model}` and use OUT"
    figures = {"layout": layout, "kind": "eagle3" if eagle3 else "specblock"}
    named = flat(data).get(LAYERS) if eagle3 else None
    try:
        (convert_eagle3 if eagle3 else convert_published)(
            folder,
            out,
            target_layers=patient.layers,
            tokenizer_fingerprint=tokenizer_fingerprint(patient.tokenizer),
            target_name=patient.request.model,
        )
    except (VocabularyMapError, FeatureLayersError) as refused:
        patient.refused = refused
    else:
        kind = KINDS[read_config(out).drafter_type]
        patient.folder = out
        patient.config, patient.tensors = read_stored(out, kind.config, kind.network)
    patient.published, patient.named_layers = True, named
    return warning(
        f"{figures['kind']} drafter in {layout} layout, not converted", advice, **figures
    )


def feature_layers(patient: Patient) -> Verdict:
    """The layers that the drafter reads are layers of the target."""
    if isinstance(patient.refused, FeatureLayersError):
        raise patient.refused
    if patient.config is None:
        return skipped("the folder could not be converted")
    layers, last = patient.config.feature_layers, patient.config.target_layers - 1
    figures = {
        "layers": list(layers),
        "convention": FEATURE_CONVENTION,
        "published": patient.named_layers,
    }
    bad = [layer for layer in layers if not 0 <= layer <= last]
    if bad or len(set(layers)) < len(layers):
        return wrong(
            f"it reads the outputs of layers {_listed(layers)}, of which not all are different "
            f"layers from 0 to {last}",
            "convert it again and name them with --feature-layers",
            **figures,
        )
    said = ""
    if patient.published:
        named = patient.named_layers
        said = f", which it {f'calls {_listed(named)}' if named else 'does not name'}"
    return ok(f"outputs of layers {_listed(layers)} of {last + 1}{said}", **figures)


def vocabulary_map(patient: Patient) -> Verdict:
    """Both maps name the same tokens, each once, all of them the target's."""
    if isinstance(patient.refused, VocabularyMapError):
        raise patient.refused
    if patient.config is None:
        return skipped("the folder could not be converted")
    d2t, t2d = patient.tensors["d2t"], patient.tensors["t2d"]
    check_vocabulary_map(d2t, t2d, patient.folder / WEIGHTS)
    return ok(
        f"{len(d2t)} of {len(t2d)} tokens, each once",
        draft_vocabulary=len(d2t),
        vocabulary=len(t2d),
    )


def fits_target(patient: Patient) -> Verdict:
    """It was made for a target of this shape and tokenizer."""
    if patient.config is None:
        return skipped("the folder could not be converted")
    patient.drafter = load_drafter(patient.folder, patient.network, patient.tokenizer)
    origin = patient.config.target_name or "a target without a name"
    return ok(f"made for {origin}", made_for=patient.config.target_name)


def _listed(layers) -> str:
    return ", ".join(map(str, layers))

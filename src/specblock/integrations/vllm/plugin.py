"""What vLLM calls in each of its processes, maybe several times."""

from __future__ import annotations

import logging

__all__ = ["register"]

_log = logging.getLogger("specblock")


def register() -> None:
    """Let vLLM load drafters of ours: ``{"method": "eagle3", "model": FOLDER}``.

    Entry point of the group ``vllm.general_plugins``. Nothing changes for other models; on a
    version that was not tested, loading a folder of ours says so.
    """
    try:
        from vllm.transformers_utils import config as configs

        from specblock.integrations.vllm.engine_config import ARCHITECTURE, FolderParser
        from specblock.integrations.vllm.versions import check_version
    except ImportError as error:  # another version has other modules: serve without us
        _log.warning("SpecBlock's plug-in does not fit this vLLM: %s", error)
        return
    from specblock.errors import SpecBlockError

    if configs._CONFIG_FORMAT_TO_CONFIG_PARSER.get("hf") is not FolderParser:
        configs._CONFIG_FORMAT_TO_CONFIG_PARSER["hf"] = FolderParser
    try:
        check_version()
    except SpecBlockError as error:  # the parser raises it where a folder of ours is asked for
        _log.info("%s", error)
        return
    from vllm import ModelRegistry
    from vllm.v1.worker import gpu_model_runner

    from specblock.integrations.vllm.network import PagedNetwork
    from specblock.integrations.vllm.proposer import Chooser

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, PagedNetwork)
    gpu_model_runner.EagleProposer = Chooser

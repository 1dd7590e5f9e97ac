"""Say at the end of `launch_server --help` what dlm-serve adds."""

from __future__ import annotations

from argparse import ArgumentParser

from dlm_serve.families import FAMILIES
from dlm_serve.options.server_file import CONFIG_VARIABLE, ServerConfig


def add_usage(parser: ArgumentParser) -> None:
    """Let the help of `parser` end with our families and options."""
    parser.epilog = (
        f"dlm-serve is installed, which serves diffusion language models ({', '.join(f.name for f in FAMILIES)}) by "
        f"their --model-path alone, and a small one as --model-path nano. Its options stand in a YAML file, given with "
        f"--dllm-algorithm-config or in {CONFIG_VARIABLE}: {', '.join(ServerConfig().origins(None))}. A request says "
        "in custom_params.dlm how it decodes. GET /dlm/status tells what is in force and where it is from; "
        "`dlm-serve doctor` whether a server would start here."
    )

"""Options that several verbs share, so that a name means the same everywhere."""

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_MODEL = "smollm2-135m-instruct"

Model = Annotated[
    str,
    typer.Option(
        help="Embedded name, folder, GGUF file or hub id of the target.", show_default=True
    ),
]
Drafter = Annotated[
    str,
    typer.Option(
        help="Folder of a drafter, 'lookup' to draft from the text alone (any model), 'none', or "
        "'auto': the one that ships, else lookup."
    ),
]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto.")]
Exact = Annotated[
    bool | None,
    typer.Option(
        help="Verify so that the output is plain decoding's to the bit in any dtype (CPU; a little "
        "slower).",
        show_default="in half precision on the CPU",
    ),
]
Device = Annotated[str, typer.Option(help="A torch device such as cpu or cuda.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads.", show_default="torch's own choice")
]

MaxNewTokens = Annotated[int, typer.Option(help="Most tokens of one answer.")]
Temperature = Annotated[float, typer.Option(help="0 is greedy decoding.")]
TopK = Annotated[int, typer.Option(help="Sample from the k most probable tokens; 0 is off.")]
TopP = Annotated[float, typer.Option(help="Sample from this much probability mass; 1 is off.")]
MinP = Annotated[float, typer.Option(help="Least share of the best token's probability.")]
RepetitionPenalty = Annotated[float, typer.Option(help="Above 1 discourages repetition.")]
FrequencyPenalty = Annotated[float, typer.Option(help="Lowers tokens by how often they came.")]
PresencePenalty = Annotated[float, typer.Option(help="Lowers tokens that came already.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same text.")]
Stop = Annotated[
    list[str] | None, typer.Option(help="Stop before this text; may be given several times.")
]
System = Annotated[str | None, typer.Option(help="System message.")]
JsonOut = Annotated[Path | None, typer.Option("--json", help="Write the full report to this file.")]
Adapt = Annotated[
    Path | None,
    typer.Option(help="Let the drafter learn from this use; the folder keeps what it learns."),
]

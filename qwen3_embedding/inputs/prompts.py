"""The exact prompts of Qwen3-Embedding and Qwen3-Reranker.

Sources: the published model cards and examples.  Embedder queries have **no space** after ``Query:``; documents are
raw. The reranker's fields are separated by single newlines, and the suffix closes an empty thought.
"""

from __future__ import annotations

from qwen3_embedding.types import DEFAULT_INSTRUCTION

END_OF_TEXT = "<|endoftext|>"
"""The pooled end token of embedders (id 151643 in the published tokenizers)."""

RERANKER_PREFIX = (
    "<|im_start|>system\n"
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n"
)
RERANKER_SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"

RERANKER_CHAT_TEMPLATE = (
    "{%- set ns = namespace(system='', query='', document='') -%}"
    "{%- for message in messages -%}"
    "{%- if message.role == 'system' -%}{%- set ns.system = message.content -%}"
    "{%- elif message.role == 'query' -%}{%- set ns.query = message.content -%}"
    "{%- elif message.role == 'document' -%}{%- set ns.document = message.content -%}"
    "{%- endif -%}{%- endfor -%}"
    "{%- if not ns.system -%}{%- set ns.system = '" + DEFAULT_INSTRUCTION + "' -%}{%- endif -%}"
    "{{- '" + RERANKER_PREFIX.replace("\n", "\\n").replace("'", "\\'") + "' -}}"
    "{{- '<Instruct>: ' + ns.system + '\\n<Query>: ' + ns.query + '\\n<Document>: ' + ns.document -}}"
    "{{- '" + RERANKER_SUFFIX.replace("\n", "\\n") + "' -}}"
)
"""The reranker's template for sentence-transformers' ``CrossEncoder`` (roles ``system``, ``query``, ``document``)."""


def query_prefix(instruction: str | None = None) -> str:
    """What stands before a query: ``Instruct: {task}\\nQuery:``. An empty instruction gives no prefix at all."""
    task = DEFAULT_INSTRUCTION if instruction is None else check_text(instruction, "instruction")
    return f"Instruct: {task}\nQuery:" if task else ""


def query_prompt(query: str, instruction: str | None = None) -> str:
    """A query as the embedder reads it, the end token aside."""
    return query_prefix(instruction) + check_text(query, "query")


def reranker_head(query: str, instruction: str | None = None) -> str:
    """The beginning of a reranker body, the same for all documents of a query."""
    task = DEFAULT_INSTRUCTION if instruction is None else check_text(instruction, "instruction")
    return f"<Instruct>: {task}\n<Query>: {check_text(query, 'query')}\n<Document>: "


def reranker_body(query: str, document: str, instruction: str | None = None) -> str:
    """What stands between the reranker's prefix and suffix."""
    return reranker_head(query, instruction) + check_text(document, "document")


def check_text(text: object, what: str = "text") -> str:
    """The text itself, if it is one.

    Raises:
        TypeError: not a string.
        ValueError: a string that is no Unicode text (lone surrogates).
    """
    if not isinstance(text, str):
        raise TypeError(f"{what} is {type(text).__name__} ({text!r:.60}); wanted a string")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} has a lone surrogate at character {error.start} (U+{ord(text[error.start]):04X}) and is not valid "
            "Unicode; decode the source as UTF-8, or repair it with text.encode('utf-8', 'replace').decode()"
        ) from None
    return text


def check_texts(texts: object, what: str = "texts") -> list[str]:
    """The texts as a list, each checked.

    Raises:
        TypeError: one string instead of a list of them, or an item that is no string.
        ValueError: an item that is not valid Unicode.
    """
    if isinstance(texts, (str, bytes)):
        raise TypeError(f"{what} is a single {type(texts).__name__}; wanted a list of strings: [{texts!r:.40}]")
    try:
        items = list(texts)  # type: ignore[call-overload]
    except TypeError:
        raise TypeError(f"{what} is {type(texts).__name__}; wanted a list of strings") from None
    return [check_text(item, f"{what}[{number}]") for number, item in enumerate(items)]

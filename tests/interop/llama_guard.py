"""Compares our texts for Llama Guard 1 and 2 with those that Meta's own package makes.

    pip download --no-deps llama-cookbook==0.0.5.post1 && unzip llama_cookbook-*.whl
    python tests/interop/llama_guard.py llama_cookbook/inference/prompt_format_utils.py

The module is loaded by itself: the package around it asks for a GPU. Two differences are expected: the package leaves the
token that begins a text to the tokenizer, and it ends the names of version 2 with a space, which the checkpoint's own
template does not.
"""

import importlib.util
import pathlib
import sys

GOLDEN = pathlib.Path(__file__).parents[2] / "fixtures/judge/llama_guard.txt"

spec = importlib.util.spec_from_file_location("prompt_format_utils", sys.argv[1])
theirs = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = theirs
spec.loader.exec_module(theirs)

turns = [
    theirs.ConversationTurn("Boil rice?", theirs.AgentType.USER),
    theirs.ConversationTurn("First, water.", theirs.AgentType.AGENT),
]
golden = GOLDEN.read_text(encoding="utf-8").split("\n=====\n")
for version, begins, ours in zip(("LLAMA_GUARD_1", "LLAMA_GUARD_2"), ("<s>", "<|begin_of_text|>"), golden):
    text = theirs.build_default_prompt(theirs.AgentType.AGENT, turns, theirs.LlamaGuardVersion[version])
    assert ours == begins + text.replace(". \n", ".\n"), f"{version}:\n{text}\n---\n{ours}"
    print(f"{version}: equal")

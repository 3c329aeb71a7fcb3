"""Which files a source reads: those that its pattern names, or one beside each picture; and where they may lie."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from difflib import get_close_matches
from pathlib import Path

from flows.graph import Bound, Graph
from flows.spec import shown
from nodes.errors import InputError, NoFiles, PipelineError

PLACES = ("folder", "name", "stem", "id")
"""What a template may take from a picture: its folder, its file's name with and without suffix, and the element's id."""

_PLACE = re.compile(r"\{(" + "|".join(PLACES) + r")\}")


def places_in(path: str) -> list[str]:
    """The places that a template names, in order."""
    return _PLACE.findall(path)


def mistyped(path: str) -> list[str]:
    """The words in braces that look like one of `PLACES` and are none. Others may stand in a file's name."""
    words = re.findall(r"\{(\w+)\}", path)
    return [word for word in words if word not in PLACES and get_close_matches(word.lower(), PLACES)]


def matching(graph: Graph, step: Bound, path: str, suffixes: tuple[str, ...]) -> dict[str, str]:
    """The files that a file's path, a folder or a pattern names, in order, by what people call them. Strings, since there
    may be a million. Those that lie in the graph's `apart_from` count as not there, unless the path itself leads into it.

    Raises:
        PipelineError: there is none (`NoFiles` where their folder is there), or one lies where it may not.
    """
    pattern = os.path.expanduser(path)
    if os.path.isfile(pattern):  # whatever stands in its name
        base, pattern = os.path.dirname(pattern), glob.escape(pattern)
    elif os.path.isdir(pattern):
        base, pattern = pattern, os.path.join(glob.escape(pattern), "**", "*")
    else:
        base = os.path.dirname(re.split(r"[*?[]", pattern)[0])
    root = os.path.realpath(base or os.curdir)
    apart = [os.path.join(each, "") for each in map(str, graph.apart_from) if not Path(root).is_relative_to(each)]
    found = {}
    for file in sorted(glob.glob(pattern, recursive=True)):
        name = os.path.relpath(file, base or os.curdir)
        if os.path.isfile(file) and not (apart and os.path.join(root, name, "").startswith(tuple(apart))):
            found[file] = name.replace(os.sep, "/")
    files = [file for file in found if not suffixes or os.path.splitext(file)[1].lower() in suffixes]
    if not files:
        kinds = f" ending in {', '.join(suffixes)}" if found else ""
        there = glob.has_magic(pattern) and os.path.isdir(root)
        raise refusal(graph, step, f"no file{kinds} matches {shown(path)}", NoFiles if there else PipelineError)
    for file in files:
        try:
            confine(graph, step, file)
        except InputError as error:
            raise refusal(graph, step, str(error)) from None
    names = [found[file] for file in files]
    short = [os.path.splitext(name)[0] for name in names]
    uses = Counter(short)
    ids = [name if uses[one] > 1 else one for one, name in zip(short, names, strict=True)]
    if len(set(ids)) < len(ids):  # a.png.png beside a.png and a.jpg
        ids = names
    return dict(zip(ids, files, strict=True))


def beside(graph: Graph, step: Bound, template: str, picture: Path, id_: str) -> Path:
    """The file that a template names for an element: its picture's file and its id put in, and nothing evaluated.

    Raises:
        InputError: it lies where it may not.
    """
    values = {"folder": str(picture.parent), "name": picture.name, "stem": picture.stem, "id": id_}
    path = Path(_PLACE.sub(lambda match: values[match[1]], os.path.expanduser(template)))
    confine(graph, step, path, picture.parent if "path" in graph.steps[step.gives[0]].trusted else None)
    return path


def confine(graph: Graph, step: Bound, path: str | Path, also: Path | None = None) -> None:
    """Raise InputError where the pipeline's file itself names a file outside its own folder, the working directory, and
    the folder `also`; links are followed."""
    if graph.roots is None or "path" in step.trusted:
        return
    real = Path(os.path.realpath(path))
    roots = graph.roots if also is None else (*graph.roots, Path(os.path.realpath(also)))
    if not any(real.is_relative_to(root) for root in roots):
        raise InputError(f"{path} lies outside the pipeline's folder and the working directory; allow it with "
                         f"--allow {os.path.dirname(path) or os.curdir}")


def refusal(graph: Graph, step: Bound, message: str, kind: type[PipelineError] = PipelineError) -> PipelineError:
    """What is wrong with a source's path, at its place in the file."""
    return kind([graph.spec.problem(f'step "{step.name}": path: {message}', "steps", step.name, "path")])

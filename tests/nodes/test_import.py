"""`import nodes` stays light."""

import subprocess
import sys

HEAVY = "{'torch', 'diffusers', 'transformers', 'scipy', 'PIL', 'prefect', 'flows'}"


def test_importing_nodes_imports_neither_torch_nor_pillow() -> None:
    code = f"import sys, nodes; print(sorted({HEAVY} & {{name.split('.')[0] for name in sys.modules}}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_shipped_node_declares_its_version_and_its_ports() -> None:
    import nodes
    from nodes.base import registered

    shipped = {name: node for name, node in registered().items() if node.__module__.startswith("nodes.")}
    assert set(shipped) >= {
        "ContactSheet", "Crop", "Detect", "Embed", "Generate", "Inpaint", "Load", "LoadMask", "LoadText", "Nearest",
        "Paste", "Refine", "Save", "Segment",
    }
    for name, node in shipped.items():
        assert node.version.isdigit(), name
        assert getattr(nodes, name) is node
    assert {name: str(port) for name, port in shipped["Inpaint"].ports.items()} == {"image": "Image", "mask": "Masks"}
    assert {name: str(port) for name, port in shipped["Paste"].ports.items()} == {
        "image": "Image", "crops": "list[Image]", "places": "list[Boxes]",
    }
    assert {name: str(port) for name, port in shipped["Nearest"].outputs.items()} == {
        "images": "list[Image]", "scores": "list[Score]",
    }

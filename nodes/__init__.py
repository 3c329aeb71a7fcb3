"""What can be done to a picture: the artifact types, the `Node` base, and the node classes.

Importing this imports no torch; models are loaded when a node first runs.
"""

from nodes.artifacts import Artifact, Boxes, Embedding, File, Image, Latents, Masks, Score, Text
from nodes.base import Model, Node, Output, Sink, Source, Step
from nodes.contact_sheet import ContactSheet
from nodes.crop import Crop, Crops
from nodes.detect import Detect
from nodes.embed import Embed
from nodes.generate import Generate, Generated
from nodes.inpaint import Inpaint
from nodes.load import Load
from nodes.load_mask import LoadMask
from nodes.load_text import LoadText
from nodes.nearest import Matches, Nearest
from nodes.paste import Paste
from nodes.refine import Refine
from nodes.save import Save
from nodes.segment import Segment

__all__ = [
    "Artifact", "Boxes", "ContactSheet", "Crop", "Crops", "Detect", "Embed", "Embedding", "File", "Generate", "Generated",
    "Image", "Inpaint", "Latents", "Load", "LoadMask", "LoadText", "Masks", "Matches", "Model", "Nearest", "Node", "Output",
    "Paste", "Refine", "Save", "Score", "Segment", "Sink", "Source", "Step", "Text",
]

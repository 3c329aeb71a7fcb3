"""Apache Hamilton with its cache: one function a node, keyed by the contents of inputs."""

import importlib.util
import sys
import time

from chain import arguments, report
from hamilton import driver

count, folder = arguments()
folder.mkdir(parents=True, exist_ok=True)
path = folder / f"hamilton_chain_{count}.py"
if not path.exists():
    nodes = [f"def n{i + 1}(n{i}: np.ndarray) -> np.ndarray:\n    return step(n{i}, {i})\n" for i in range(count)]
    head = "import numpy as np\nfrom chain import source, step\n\ndef n0() -> np.ndarray:\n    return source()\n"
    path.write_text("\n".join([head, *nodes]))
spec = importlib.util.spec_from_file_location("hamilton_chain", path)
assert spec and spec.loader
module = importlib.util.module_from_spec(spec)
sys.modules["hamilton_chain"] = module
spec.loader.exec_module(module)
started = time.perf_counter()
built = driver.Builder().with_modules(module).with_cache(path=str(folder / "cache")).build()
image = built.execute([f"n{count}"])[f"n{count}"]
report(time.perf_counter() - started, image)

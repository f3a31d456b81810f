"""A checkout whose decoders do as they are told: enough of `bench` and `models` for the process that times them."""

from textwrap import dedent

FILES = {
    "bench/__init__.py": "",
    "models/__init__.py": "",
    "bench/machine.py": "synchroniser = lambda device: lambda: None\n",
    # Nothing here computes, and the real one takes seconds to load.
    "torch/__init__.py": """
        class Tensor(list):
            def to(self, device): return self
            def cpu(self): return self
            def tolist(self): return list(self)
        def set_num_threads(number): pass
        """,
    "bench/batching.py": """
        from torch import Tensor
        def pad_sources(sources):
            lengths = [len(s) for s in sources]
            rows = [list(s) + [0] * (max(lengths) - len(s)) for s in sources]
            return Tensor(rows), Tensor(lengths)
        """,
    "bench/preparation.py": """
        from types import SimpleNamespace
        class PreparedData:
            data_spec = None
            def __init__(self, folder): pass
            def examples(self, split): return list(range(12))
            def encode(self, examples): return [SimpleNamespace(source=[1] * (1 + e % 4)) for e in examples]
        """,
    "bench/checkpoint.py": """
        from contextlib import nullcontext
        from types import SimpleNamespace
        from models.registry import decoder
        def inference(device, dtype): return nullcontext()
        def load_model(family, config, spec, folder, device): return SimpleNamespace(decode=decoder(config))
        def load_companions(*_): return {}
        """,
    "bench/language_model.py": "def give_language_model(*_): pass\n",
    "models/registry.py": """
        import os, time
        from types import SimpleNamespace
        from torch import Tensor
        # A clock of its own: the outcome is the same however busy the machine is.
        CLOCK = [0]
        time.perf_counter_ns = lambda: CLOCK[0]
        KNOWN = ("works",)
        DELAYS = {}
        OFFSET = 0
        EXTRA = {}
        LOST = 0
        class Options:
            model_fields = {"name": None, "beam": None, **EXTRA}
            def __init__(self, **values): self.values = values
        def load_family(name):
            if name not in KNOWN:
                raise LookupError(f"unknown family {name!r}")
            return SimpleNamespace(settings=Options, config=Options)
        def decoder(config):
            def decode(src, lengths, settings):
                do = DELAYS.get(config["name"], 0.002)
                if do == "die":
                    os._exit(7)
                if do == "raise" or (do == "raise at 4" and len(src) == 4):
                    raise ValueError("no such luck")
                if do == "raise at 4":
                    do = 0.002
                CLOCK[0] += int(do * 1e9)
                tokens = Tensor([i + OFFSET for i in row] for row in src)
                return SimpleNamespace(tokens=tokens, lengths=Tensor(n - LOST for n in lengths))
            return decode
        """,
}


def write_checkout(root, **changes):
    """Write a checkout to `root`; `changes`: values of the names in its `models.registry`."""
    for name, code in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(code))
    registry = root / "models" / "registry.py"
    lines = registry.read_text().splitlines()
    for name, value in changes.items():
        lines = [f"{name} = {value!r}" if line.startswith(f"{name} = ") else line for line in lines]
    registry.write_text("\n".join(lines))
    return root

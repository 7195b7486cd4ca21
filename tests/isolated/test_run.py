"""``python -m fastsock run``: as python runs a program, with socketserver replaced."""

from __future__ import annotations

import re
import signal
import urllib.request
import zipfile

import pytest
from programs import RUN, Ended, Programs, as_script_and_module, check_alike, end
from support import TIMEOUT

# --- what a program sees

NAMES = """
    'A docstring.'
    import sys
    for name, value in sorted(dict(globals()).items()):
        if name not in ('__loader__', '__spec__', '__builtins__', '__annotations__'):
            print(name, repr(value))
    print(sys.argv, sys.path)
    print(type(__loader__).__name__, getattr(__loader__, 'name', None))
    print(getattr(__loader__, 'path', None), __builtins__ is sys.modules['builtins'])
    if __spec__ is not None:
        spec = __spec__
        print(spec.name, spec.origin, spec.parent, spec.cached, spec.submodule_search_locations)
"""


@as_script_and_module
@pytest.mark.parametrize("flags", [(), ("-P",), ("-I",), ("-s", "-E", "-O")], ids=" ".join)
def test_names_arguments_and_path(
    programs: Programs, target: list[str], flags: tuple[str, ...]
) -> None:
    if flags == ("-P",) and programs.version < (3, 11):
        pytest.skip("-P is new in Python 3.11")
    if ("-I" in flags or "-E" in flags) and "PYTHONPATH" in programs.environment:
        pytest.skip("fastsock is not installed here")
    if target[0] == "-m" and ("-I" in flags or "-P" in flags):
        pytest.skip("python does not look for modules in the current folder then")
    programs.write("app.py", NAMES)
    found = check_alike(programs, *target, "-m", "x", "--help", "-h", "-", "", flags=flags)
    assert "'-m', 'x', '--help', '-h', '-', ''" in found.out


PATHS = ["sub/app.py", "./sub/../sub/app.py", "to_app.py", "to_deep/../app.py"]


@pytest.mark.parametrize("path", [*PATHS, "sub/app.pyc", "sub/plain", "{absolute}"])
def test_paths_of_scripts(programs: Programs, path: str) -> None:
    script = programs.write("sub/app.py", NAMES)
    programs.write("sub/plain", NAMES)
    programs.write("app.py", "raise SystemExit('the wrong app.py')")
    programs.write("sub/deep/empty")
    for name in ("app.py", "deep"):
        (programs.folder / f"to_{name}").symlink_to(f"sub/{name}")
    compiling = "import py_compile; py_compile.compile('sub/app.py', 'sub/app.pyc')"
    assert programs.run("-c", compiling).status == 0
    assert check_alike(programs, path.format(absolute=script), "argument").status == 0


def test_script_that_is_a_pipe(programs: Programs) -> None:
    """As in `python <(generate)`: it can be read once only."""
    found = check_alike(programs, "/dev/stdin", stdin="print(__file__, __name__)\n")
    assert found.out == "/dev/stdin __main__\n"


TELL = """
    import __main__, beside
    print(__main__.__dict__ is globals(), beside.__file__)
"""


@pytest.mark.parametrize("flags", [(), ("-I",)], ids=" ".join)
@pytest.mark.parametrize("path", ["folder", "folder/", "zipped"])
def test_folder_and_zip_file(programs: Programs, path: str, flags: tuple[str, ...]) -> None:
    if flags and "PYTHONPATH" in programs.environment:
        pytest.skip("fastsock is not installed here")
    with zipfile.ZipFile(programs.folder / "zipped", "w") as archive:
        for name, text in (("__main__.py", NAMES + TELL), ("beside.py", "")):
            archive.write(programs.write(f"folder/{name}", text), name)
    found = check_alike(programs, path, "argument", flags=flags)
    assert found.status == 0
    assert "True" in found.out


def test_current_folder(programs: Programs) -> None:
    programs.write("__main__.py", "import beside, sys; print(sys.argv, __name__, __package__)\n")
    programs.write("beside.py")
    assert check_alike(programs, ".", "argument").status == 0


@pytest.mark.parametrize("module", ["package", "package.inner", "package.inner.deep", "spaced"])
def test_module_of_a_package(programs: Programs, module: str) -> None:
    programs.write("package/__init__.py", "value = 1\n")
    programs.write("package/__main__.py", NAMES + "    from . import value\n")
    programs.write("package/inner/__init__.py", "from .. import value; other = value + 1\n")
    programs.write("package/inner/__main__.py", NAMES + "    from .. import value\n")
    programs.write("package/inner/deep.py", NAMES + "    from . import other; print(other)\n")
    programs.write("spaced/__main__.py", NAMES)  # no __init__.py
    assert check_alike(programs, "-m", module, "-x").status == 0


# --- how a program works

WORKS = {
    "picklable": """
        import pickle, sys, __main__
        class Thing:
            def __init__(self, value): self.value = value
        print(pickle.loads(pickle.dumps(Thing(3))).value, Thing.__module__, Thing)
        print(__main__.Thing is Thing, sys.modules['__main__'] is __main__)
    """,
    "spawned": """
        import multiprocessing
        class Thing:
            pass
        def work(queue):
            queue.put((Thing(), __name__))
        if __name__ == '__main__':
            context = multiprocessing.get_context('spawn')
            queue = context.SimpleQueue()
            process = context.Process(target=work, args=(queue,))
            process.start()
            thing, name = queue.get()
            process.join()
            print(type(thing) is Thing, name, process.exitcode)
    """,
    "source": """
        import inspect
        class Thing:
            x = 1
        def function():
            return 2
        print(inspect.getsource(Thing), inspect.getsource(function), inspect.getfile(Thing))
    """,
    "stdin": """
        import sys
        print(input())
        print(sys.stdin.read())
    """,
    "no inherited future": """
        def function(x: print('evaluated')) -> None: pass
        print(function.__annotations__)
    """,
    "future": """
        from __future__ import annotations
        def function(x: print('not evaluated')) -> None: pass
        print(function.__annotations__)
    """,
    "threads and atexit": """
        import atexit, threading, time
        atexit.register(print, 'exit 1')
        atexit.register(print, 'exit 2')
        main_ended = threading.Event()
        def outlive():
            threading.main_thread().join()
            print(VALUE, __name__)
            import __main__
            print(__main__.VALUE)
        VALUE = 'thread'
        threading.Thread(target=outlive).start()
        print('main ends', threading.current_thread() is threading.main_thread())
    """,
    "finalized": """
        class Last:
            def __del__(self): print('deleted', VALUE)
        VALUE = 1
        last = Last()
    """,
    "warning": """
        import warnings
        warnings.warn('old', DeprecationWarning)
        def function():
            warnings.warn('older', DeprecationWarning, stacklevel=2)
        function()
    """,
    "frames": """
        import sys
        def function():
            outer = sys._getframe().f_back
            print(outer.f_code.co_name, outer.f_code.co_filename, outer.f_globals is globals())
        function()
        print(sys.exc_info())
    """,
}


@as_script_and_module
@pytest.mark.parametrize("name", WORKS)
def test_works(programs: Programs, name: str, target: list[str]) -> None:
    programs.write("app.py", WORKS[name])
    found = check_alike(programs, *target, stdin="first\nsecond\nthird")
    assert found.status == 0
    assert found.out or found.err


# --- socketserver is replaced

REPLACED = """
    import socketserver
    import http.server, logging.config, wsgiref.simple_server, xmlrpc.server, pydoc
    from socketserver import TCPServer, ThreadingMixIn, StreamRequestHandler
    import fastsock, sys

    assert socketserver is fastsock
    def lineage(cls):
        return [base.__module__.partition('.')[0] for base in cls.__mro__]
    for cls in (http.server.HTTPServer, http.server.ThreadingHTTPServer,
                http.server.BaseHTTPRequestHandler, xmlrpc.server.SimpleXMLRPCServer,
                wsgiref.simple_server.WSGIServer, logging.config.ThreadingTCPServer,
                logging.config.StreamRequestHandler):
        assert 'fastsock' in lineage(cls), cls.__mro__
        assert 'socketserver' not in lineage(cls), cls.__mro__
    assert issubclass(http.server.HTTPServer, TCPServer)
    assert issubclass(http.server.ThreadingHTTPServer, ThreadingMixIn)
    assert logging.config.StreamRequestHandler is StreamRequestHandler
    for module in sys.modules.values():
        assert 'socketserver.py' not in str(getattr(module, '__file__', '')), module
    print('replaced')
"""


@as_script_and_module
def test_replaced_before_anything_imports_it(programs: Programs, target: list[str]) -> None:
    programs.write("app.py", REPLACED)
    found = programs.run("-W", "error", *RUN, *target)
    assert found == Ended(0, "replaced\n", "")


def test_replaced_for_packages_of_the_module(programs: Programs) -> None:
    """A package is imported before its module is run; it has fastsock too."""
    programs.write("package/__init__.py", "from socketserver import TCPServer\n")
    programs.write("package/app.py", "from . import TCPServer; print(TCPServer.__module__)\n")
    assert programs.run(*RUN, "-m", "package.app") == Ended(0, "fastsock._servers\n", "")


def test_logging_configuration_over_a_socket(programs: Programs) -> None:
    programs.write(
        "app.py",
        """
        import json, logging, logging.config, socket, struct
        done = []
        def verify(data):
            done.append(data)
            return data
        listener = logging.config.listen(0, verify)
        listener.start()
        listener.ready.wait()
        text = json.dumps({'version': 1, 'root': {'level': 'ERROR'}}).encode()
        with socket.create_connection(('localhost', listener.port)) as client:
            client.sendall(struct.pack('>L', len(text)) + text)
            client.recv(1)
        logging.config.stopListening()
        listener.join()
        print(done, logging.getLogger().level)
        """,
    )
    found = programs.run("-W", "error", *RUN, "app.py")
    assert found == Ended(0, """[b'{"version": 1, "root": {"level": "ERROR"}}'] 40\n""", "")


def test_http_server_serves_files(programs: Programs) -> None:
    programs.write("file.txt", b"the file")
    process = programs.start(
        "-W", "error", "-u", *RUN, "-m", "http.server", "0", "--bind", "127.0.0.1"
    )
    assert process.stdout is not None
    heading = process.stdout.readline()
    port = re.search(r"port (\d+)", heading)
    assert port is not None, (heading, end(process))
    url = f"http://127.0.0.1:{port[1]}/file.txt"
    with urllib.request.urlopen(url, timeout=TIMEOUT) as reply:
        assert reply.read() == b"the file"
    process.send_signal(signal.SIGINT)
    found = end(process)
    assert (found.status, found.out) == (0, "\nKeyboard interrupt received, exiting.\n")
    assert '"GET /file.txt HTTP/1.1" 200' in found.err
    assert "Traceback" not in found.err

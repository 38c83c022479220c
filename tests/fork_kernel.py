"""Kernels that are forked from one process which has the large packages loaded: reports start in a moment, in tests.

    python fork_kernel.py serve SOCKET         the process
    python fork_kernel.py SOCKET CODE -f FILE  what Jupyter starts: asks for a kernel, which runs CODE before it
                                               starts, and lives as long as it does
"""
import array, json, os, select, signal, socket, sys

PRELOADED = ['torch', 'transformers', 'peft', 'pandas', 'seaborn', 'matplotlib.pyplot', 'ipykernel.kernelapp', 'transformers.models.llama.modeling_llama', 'transformers.models.gpt2.modeling_gpt2']


def kernel(given, fds):
    "In the forked process."
    for sig in (signal.SIGINT, signal.SIGTERM): signal.signal(sig, signal.default_int_handler if sig == signal.SIGINT else signal.SIG_DFL)
    for at, fd in enumerate(fds): os.dup2(fd, at)
    os.chdir(given['cwd']); os.environ.clear(); os.environ.update(given['env'])
    os.environ.pop('JPY_PARENT_PID', None) # it would look for its parent, and the one it has is this server
    code, *arguments = given['argv']
    sys.argv = ['ipykernel_launcher', *arguments]
    sys.path[:1] = [p for p in os.environ.get('PYTHONPATH', '').split(os.pathsep) if p]
    exec(code, {})
    from ipykernel.kernelapp import launch_new_instance
    launch_new_instance()


def serve(path):
    os.environ['MPLBACKEND'] = 'module://matplotlib_inline.backend_inline' # read when matplotlib is imported
    for m in PRELOADED: __import__(m)
    listener, running = socket.socket(socket.AF_UNIX), {} # connection -> process
    listener.bind(path); listener.listen()
    while True:
        for s in select.select([listener, *running], [], [], .05)[0]:
            if s is not listener: # it says which signal; or nothing more, when whoever asked is gone
                told = s.recv(1)
                os.kill(running[s], told[0] if told else signal.SIGKILL)
                continue
            conn, _ = listener.accept()
            text, packed, *_ = conn.recvmsg(1 << 20, socket.CMSG_SPACE(3*4))
            fds = array.array('i', packed[0][2])
            pid = os.fork()
            if not pid:
                for c in (listener, conn, *running): c.close()
                code = 1
                try: kernel(json.loads(text), fds); code = 0
                except SystemExit as e: code = e.code or 0
                finally: os._exit(code)
            for fd in fds: os.close(fd)
            running[conn] = pid
        for conn, pid in list(running.items()):
            if os.waitpid(pid, os.WNOHANG)[0]: conn.close(); del running[conn]


def ask(path, argv):
    conn = socket.socket(socket.AF_UNIX); conn.connect(path)
    conn.sendmsg([json.dumps(dict(cwd=os.getcwd(), env=dict(os.environ), argv=argv)).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [0, 1, 2]))])
    for sig in (signal.SIGINT, signal.SIGTERM): signal.signal(sig, lambda n, _: conn.send(bytes([n])))
    conn.recv(1) # until it is over


if __name__ == '__main__': serve(sys.argv[2]) if sys.argv[1] == 'serve' else ask(sys.argv[1], sys.argv[2:])

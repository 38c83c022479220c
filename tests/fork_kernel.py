"""Kernels forked from a server that has loaded the large packages, so that tests start reports quickly.

    python fork_kernel.py serve SOCKET         the server
    python fork_kernel.py SOCKET CODE -f FILE  the client that Jupyter starts: asks the server for a kernel,
                                               which runs CODE first, and lives as long as the kernel
"""
import array, json, os, select, signal, socket, sys

PRELOADED = [
    'torch', 'transformers', 'peft', 'pandas', 'seaborn', 'matplotlib.pyplot',
    'ipykernel.kernelapp', 'transformers.models.llama.modeling_llama',
    'transformers.models.gpt2.modeling_gpt2']


def kernel(given, fds):
    "Runs a kernel in the forked process."
    for sig in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sig, signal.default_int_handler if sig == signal.SIGINT else signal.SIG_DFL)
    for at, fd in enumerate(fds): os.dup2(fd, at)
    os.chdir(given['cwd'])
    os.environ.clear()
    os.environ.update(given['env'])
    os.environ.pop('JPY_PARENT_PID', None) # a kernel ends with that process, but its parent is the server
    code, *arguments = given['argv']
    sys.argv = ['ipykernel_launcher', *arguments]
    sys.path[:1] = [p for p in os.environ.get('PYTHONPATH', '').split(os.pathsep) if p]
    exec(code, {})
    from ipykernel.kernelapp import launch_new_instance
    launch_new_instance()


def serve(path):
    "Forks a kernel for each client that connects to the socket `path`."
    os.environ['MPLBACKEND'] = 'module://matplotlib_inline.backend_inline' # read when matplotlib is imported
    for m in PRELOADED: __import__(m)
    listener, running = socket.socket(socket.AF_UNIX), {} # connection -> process
    listener.bind(path)
    listener.listen()
    while True:
        for s in select.select([listener, *running], [], [], .05)[0]:
            if s is not listener: # the client sends the number of a signal, or has ended
                received = s.recv(1)
                os.kill(running[s], received[0] if received else signal.SIGKILL)
                continue
            conn, _ = listener.accept()
            text, packed, *_ = conn.recvmsg(1 << 20, socket.CMSG_SPACE(3*4))
            fds = array.array('i', packed[0][2])
            pid = os.fork()
            if not pid:
                for c in (listener, conn, *running): c.close()
                code = 1
                try:
                    kernel(json.loads(text), fds)
                    code = 0
                except SystemExit as e: code = e.code or 0
                finally: os._exit(code)
            for fd in fds: os.close(fd)
            running[conn] = pid
        for conn, pid in list(running.items()):
            if os.waitpid(pid, os.WNOHANG)[0]:
                conn.close()
                del running[conn]


def ask(path, argv):
    "Asks the server for a kernel with the input and outputs of this process, and waits for its end."
    conn = socket.socket(socket.AF_UNIX)
    conn.connect(path)
    request = json.dumps(dict(cwd=os.getcwd(), env=dict(os.environ), argv=argv)).encode()
    fds = array.array('i', [0, 1, 2])
    conn.sendmsg([request], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    for sig in (signal.SIGINT, signal.SIGTERM): signal.signal(sig, lambda n, _: conn.send(bytes([n])))
    conn.recv(1)


if __name__ == '__main__':
    if sys.argv[1] == 'serve': serve(sys.argv[2])
    else: ask(sys.argv[1], sys.argv[2:])

"""Make pictures of a text: `python txt2image.py "A photo of an astronaut riding a horse"`."""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback of Ctrl-C while importing

from stable_diffusion.cli.main import txt2image as main

if __name__ == "__main__":
    raise SystemExit(main())

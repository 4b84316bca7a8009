"""Run the command line from a checkout: `python cli.py doctor` is `t2 doctor`."""

from t2eval.cli import main

if __name__ == "__main__":
    main()

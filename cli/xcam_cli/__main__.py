"""Run the command as `python -m xcam_cli`."""

from xcam_cli import main

if __name__ == "__main__":
    main()

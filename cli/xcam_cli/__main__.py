"""`python -m xcam_cli`."""

from xcam_cli import main

main()

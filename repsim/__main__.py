from repsim.cli import main

main()

"""The `.pt` contract between the stages: where each file lies, how it is written and how it is read."""
class UserError(Exception):
    """Bad input, said in one line that names the file, flag or row and the mend. Scripts print it and exit with 2."""

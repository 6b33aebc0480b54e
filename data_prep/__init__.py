"""Turn raw dialogues into a prepared set, the input of training; the command is `xianliao-prepare`.

    reading    find the input files, recognise their form, read the records in them
    cleaning   rules for single turns and single dialogues
    corpus     steps that need the whole corpus: frequent turns, equal and almost equal dialogues, splits
    stages     the steps of a build, as functions from files to files
    pipeline   the whole build

This package imports only errors, storage, text and checkpoint.location from chatbot; none of these needs torch.
"""

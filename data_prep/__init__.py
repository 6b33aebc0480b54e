"""Raw dialogues to a prepared set; `xianliao-prepare` is the command.

    reading    files, their forms, the records in them
    cleaning   rules for single turns and dialogues
    corpus     what needs the whole corpus: frequent turns, equal and near-equal dialogues, splits
    stages     the steps of a build, as functions from files to files
    pipeline   the whole build

From chatbot it imports only errors, storage, text and checkpoint.location; none of them needs torch.
"""

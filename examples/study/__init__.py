"""What editing costs a real model: the design (`study.yaml`), its run, what was found, and the page that tells it.

    make study DATA=FOLDER            # runs the reduced form, then writes docs/study.md
    make study                        # the same with the hub's data
    make study DATA=FOLDER FORM=full  # the form for a GPU

design    study.yaml as values: what each part of a form sweeps
prepare   the data of a form: its facts, so many documents of each task, a text
run       trains what has to be trained, sweeps every part, collects
collect   the sweeps' cells without texts, in `results`: what the page is made of
cells     the collected cells as values, each beside the unedited model
hypotheses  what papers say, and whether it holds here: rules on the cells
tables    the tables of the page
sentences  its sentences that depend on the form and the cells
pictures  its pictures
same      how far two runs lie apart
page      writes the page, or says where it is not what the cells give
"""

"""Records of public data sets, which several task families make their documents of.

sets     what there is to know about a set: hub ids, file names
public   the sets that several families read
layouts  find its file in a folder and read it: hub-schema JSON(L), or the folder of Gu et al.
hub      the same records from the Hugging Face hub
sources  which of the three to use, checked before a model loads
fields   the fields of a record, checked

It knows no family.
"""

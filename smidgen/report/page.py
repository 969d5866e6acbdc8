def sweep_page(record):
    return ""


def in_notebook(page):
    return page

"""``activefreq segment``: masks of image files by clicks, boxes and start masks that are given beforehand."""

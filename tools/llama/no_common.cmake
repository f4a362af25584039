# llama.cpp's "common" library serves its command line tools; the Python binding uses none of it, and it is half of the build.
set(LLAMA_BUILD_COMMON OFF CACHE BOOL "" FORCE)

moiety_library(tokenizer
  SOURCES byte_level.cc stream_decoder.cc tokenizer.cc tokenizer_added.cc tokenizer_bpe.cc
          tokenizer_json.cc tokenizer_normalizer.cc tokenizer_pattern.cc tokenizer_regex.cc
          tokenizer_split.cc tokenizer_unicode.cc utf8.cc
  LINK moiety_common)
target_link_libraries(moiety_tokenizer PRIVATE
  simdjson::simdjson PkgConfig::PCRE2 PkgConfig::UTF8PROC)

moiety_test(tokenizer_test LABEL unit
  SOURCES "${PROJECT_SOURCE_DIR}/tests/model/tokenizer_test.cc"
          "${PROJECT_SOURCE_DIR}/tests/model/tokenizer_parts_test.cc"
  LINK moiety_tokenizer)

# Compares with PyPI tokenizers; tests/golden/tokenizer_test.py runs it.
if(BUILD_TESTING)
  add_executable(tokenizer_check "${PROJECT_SOURCE_DIR}/tests/golden/tokenizer_check.cc")
  target_link_libraries(tokenizer_check PRIVATE moiety_tokenizer simdjson::simdjson)
  set_target_properties(tokenizer_check PROPERTIES
    RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/tests")
endif()

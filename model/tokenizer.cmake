moiety_library(tokenizer
  SOURCES byte_level.cc special_tokens.cc stream_decoder.cc tokenizer.cc tokenizer_added.cc
          tokenizer_bpe.cc tokenizer_decoder.cc tokenizer_json.cc tokenizer_json_parts.cc tokenizer_merges.cc
          tokenizer_normalizer.cc tokenizer_pattern.cc tokenizer_regex.cc tokenizer_split.cc
          tokenizer_tables.cc tokenizer_unicode.cc tokenizer_vocabulary.cc
  LINK moiety_common)
target_link_libraries(moiety_tokenizer PRIVATE
  simdjson::simdjson Boost::json PkgConfig::PCRE2 PkgConfig::UTF8PROC)

moiety_test(tokenizer_test LABEL unit
  SOURCES "${PROJECT_SOURCE_DIR}/tests/model/tokenizer_test.cc"
          "${PROJECT_SOURCE_DIR}/tests/model/special_tokens_test.cc"
          "${PROJECT_SOURCE_DIR}/tests/model/tokenizer_parts_test.cc"
  LINK moiety_tokenizer)

# Compare with PyPI tokenizers, in tokens and in speed; scripts of tests/golden run them.
if(BUILD_TESTING)
  foreach(name IN ITEMS tokenizer_check tokenizer_speed)
    add_executable(${name} "${PROJECT_SOURCE_DIR}/tests/golden/${name}.cc")
    target_link_libraries(${name} PRIVATE moiety_tokenizer simdjson::simdjson)
    set_target_properties(${name} PROPERTIES
      RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/tests")
  endforeach()
endif()

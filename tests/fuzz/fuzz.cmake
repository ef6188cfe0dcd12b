# Fuzzers of the parsers of outside bytes: build-fuzz/fuzz/NAME_fuzz. `./dev fuzz` configures with clang
# and compiles with coverage and sanitizers; g++ has no libFuzzer.

# moiety_fuzz(name [SOURCES ...] LINK ...): tests/fuzz/NAME_fuzz.cc. SOURCES are those of a library that
# brings much more than the parser.
function(moiety_fuzz name)
  cmake_parse_arguments(arg "" "" "SOURCES;LINK" ${ARGN})
  list(TRANSFORM arg_SOURCES PREPEND "${PROJECT_SOURCE_DIR}/")
  add_executable(${name}_fuzz fuzz/${name}_fuzz.cc ${arg_SOURCES})
  target_link_libraries(${name}_fuzz PRIVATE moiety_options ${arg_LINK})
  target_link_options(${name}_fuzz PRIVATE -fsanitize=fuzzer)
  target_compile_definitions(${name}_fuzz PRIVATE MOIETY_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  set_target_properties(${name}_fuzz PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/fuzz")
endfunction()

moiety_fuzz(chat_template LINK moiety_chat_template)
moiety_fuzz(config LINK moiety_checkpoint)
moiety_fuzz(safetensors LINK moiety_checkpoint)
moiety_fuzz(generation_config SOURCES model/generation_config.cc LINK moiety_checkpoint)
moiety_fuzz(tokenizer LINK moiety_tokenizer)
moiety_fuzz(text LINK moiety_tokenizer)
moiety_fuzz(planner_files LINK moiety_planner)
moiety_fuzz(completion_request
  SOURCES planner/exact_json.cc router/completion_request.cc router/field_reader.cc router/generation_fields.cc
  LINK moiety_common Boost::json)

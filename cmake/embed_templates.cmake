# Embeds every file below templates/ in one generated source: path, text, in path order, with line numbers kept.
function(sapwood_embed_templates output)
    file(GLOB_RECURSE files CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/templates/*.h ${CMAKE_CURRENT_SOURCE_DIR}/templates/*.in)
    list(SORT files)
    add_custom_command(
        OUTPUT ${output}
        COMMAND ${CMAKE_COMMAND} -DROOT=${CMAKE_CURRENT_SOURCE_DIR}/templates -DOUTPUT=${output} "-DFILES=${files}"
                -P ${CMAKE_CURRENT_SOURCE_DIR}/cmake/write_templates.cmake
        DEPENDS ${files} ${CMAKE_CURRENT_SOURCE_DIR}/cmake/write_templates.cmake
        VERBATIM)
endfunction()
